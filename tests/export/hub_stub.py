"""A stand-in for the hub's HTTP API, as far as an upload needs it: it keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TOKEN = "hf_" + "s" * 30
#: Larger files go as objects of their own, as the hub wants it.
LARGEST_INLINE = 20_000


class Hub(ThreadingHTTPServer):
    """Attributes: `repositories` (name -> private), `files` (branch/name -> bytes), `calls` (paths)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.files, self.objects, self.calls = {}, {}, {}, []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _body(self):
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        self.server.objects[self.path.rsplit("/", 1)[1]] = self._body()
        self._answer({})

    def do_POST(self):
        hub, path, body = self.server, urlparse(self.path).path, self._body()
        hub.calls.append(path)
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name.startswith("theirs/"):
                return self._answer({"error": "You don't have the rights"}, 403)
            hub.repositories.setdefault(name, asked.get("visibility") == "private")
            return self._answer({"url": f"{hub.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        kind, branch = path.split("/")[5:7]
        if kind == "branch":
            return self._answer({})
        if kind == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["size"] <= LARGEST_INLINE else "lfs",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if kind == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    content = base64.b64decode(value["content"])
                    hub.files[f"{branch}/{value['path']}"] = content
                elif entry["key"] == "lfsFile":
                    hub.files[f"{branch}/{value['path']}"] = hub.objects[value["oid"]]
            url = f"{hub.endpoint}/me/x/commit/1"
            return self._answer({"success": True, "commitUrl": url, "commitOid": "1"})
        return self._answer({"error": f"no such path {path}"}, 404)
