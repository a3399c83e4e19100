"""Upload an export to the Hugging Face hub: what was proven when it was written, and its model card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError, RecipeError, without_secrets
from linearard.export.card import written_card
from linearard.export.folder import EXPORT_FILE
from linearard.model import written

#: What the hub's answers mean to somebody who pushes.
_MEANINGS = {
    401: "no token, or one that the hub does not know",
    403: "a token that may not write there",
    404: "no such repository or branch, or a token that may not see it",
    409: "somebody else changing the same repository",
    429: "too many requests",
}


@dataclass(frozen=True)
class Push:
    """An upload that can be done.

    Attributes:
        folder: of the export.
        repository: OWNER/NAME.
        files: name to size in bytes of all that is uploaded.
        card: name of the file with the model card.
        notes: what whoever pushes should know.
    """

    folder: Path
    repository: str
    files: dict[str, int]
    card: str
    notes: list[str]


def plan_push(folder: str | Path, repository: str) -> Push:
    """Check everything that needs no network.

    Args:
        folder: of an export.
        repository: OWNER/NAME.

    Raises:
        CheckpointError: it is no export that was proven, or it was changed since.
        RecipeError: the name is none of a repository, or nobody else could read the export.
    """
    folder = Path(folder)
    _check_name(repository)
    about = _proven(folder)
    notes = []
    base = str(about.get("base_model", ""))
    local = Path(base).is_absolute() or base.startswith((".", "~"))
    if local and about.get("form") == "adapter":
        raise RecipeError(
            expected="an adapter over a base model of the hub, which others can load",
            got=f"one over {base}, a path of this machine",
            fix="Export it merged, or name the base model by its hub id (--model.name).",
        )
    if local:
        notes.append(f"{EXPORT_FILE} names the base model by a path of this machine: {base}")
    if about.get("form") == "gguf" and "relative_error" not in about:
        notes.append(
            f"checked with {about.get('checked_with')}; install llama-cpp-python and export again to have "
            "it run before others do"
        )
    card = written_card(folder)
    if card is None:
        raise CheckpointError(
            expected="the export's model card, README.md or MODEL_CARD.md",
            got="none",
            fix="Export again with --overwrite.",
        )
    if card.name != "README.md":
        notes.append(
            f"README.md was not written by linearard and is what the hub will show; the card is {card.name}"
        )
    names = [*about["files"], EXPORT_FILE]
    if (folder / "README.md").is_file() and "README.md" not in names:
        names.append("README.md")
    sizes = {name: (folder / name).stat().st_size for name in sorted(names)}
    return Push(folder, repository, sizes, card.name, notes)


def push_export(
    plan: Push,
    *,
    private: bool = False,
    branch: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload; the repository is made where there is none.

    Args:
        plan: from `plan_push`.
        private: make a new repository private; one that exists stays as it is.
        branch: to upload to; it is made where there is none. Default: main.
        endpoint: of another hub; default: as huggingface_hub is set (HF_ENDPOINT).
        token: default: HF_TOKEN, or that of `hf auth login`.

    Returns:
        The address of what was uploaded.

    Raises:
        CheckpointError: the hub does not take it; in words, and without the token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(plan.repository, private=private or None, exist_ok=True)
        if branch is not None:
            api.create_branch(plan.repository, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=plan.repository,
            folder_path=plan.folder,
            allow_patterns=[_literally(name) for name in plan.files],
            revision=branch,
            commit_message=f"Upload by linearard: {plan.folder.name}",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        meaning = _MEANINGS.get(status) or str(error).strip().splitlines()[0]
        raise _refused(plan, f"{meaning} (HTTP {status})") from None
    except Exception as error:  # the HTTP library beneath differs by the client's version
        cause = error.__cause__ or error
        why = str(cause).strip().split("\n")[0] or type(cause).__name__
        raise _refused(plan, why) from error
    return str(getattr(done, "commit_url", done))


def _refused(plan: Push, why: str) -> CheckpointError:
    return CheckpointError(
        expected=f"the hub to take {plan.repository}",
        got=without_secrets(why).rstrip("."),
        fix="Log in with `hf auth login` or set HF_TOKEN to a token that may write there, check the name and "
        "the network, and push again: files that are there already are not sent twice.",
    )


def _proven(folder: Path) -> dict[str, Any]:
    """What `linearard_export.json` says, which is written when the export has been read back."""
    try:
        about = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
        files = about["files"]
        proven = isinstance(files, dict) and isinstance(about["form"], str)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        proven = False
    if not proven or written.is_withdrawn(folder):
        raise CheckpointError(
            expected=f"the folder of an export that was read back and compared, with {EXPORT_FILE}",
            got=str(folder),
            fix="Make it with `linearard export RUN OUT`.",
        )
    if damaged := written.damage(folder, marker=EXPORT_FILE):
        raise CheckpointError(
            expected="the files as they were when the export was checked",
            got=damaged,
            fix="Export again with --overwrite.",
        )
    return about


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        good = repository.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise RecipeError(
            expected="the name of a repository as OWNER/NAME, of letters, digits, '-', '_' and '.'",
            got=repr(repository),
            fix="Set --to.",
        )


def _literally(name: str) -> str:
    """A pattern of upload_folder that means one file."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
