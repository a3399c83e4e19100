"""Figures and table of RULER's result files."""

import pytest

from benchmarks.ruler_table import ruler_figures, ruler_table


def part(*values):
    return {
        "seconds": 1,
        "tasks": {"a": {"values": list(values[:2])}, "b": {"values": list(values[2:])}},
    }


RESULT = {
    "model": "SmolLM2-135M.gguf",
    "runs": {
        "best": {
            "original": {"4096": part(1, 1, 0, 1), "65536": part(0, 0, 0, 0)},
            "stretched": {"4096": part(0, 0, 0, 0.5)},
            "restored": {"4096": part(1, 1, 0.5, 1), "65536": part(1, 0, 1, 1)},
        },
        "cpt_alone": {"restored": {"4096": part(0, 1, 0, 1)}},
    },
}


def test_shares_intervals_and_what_is_kept():
    figures = ruler_figures("h200", RESULT)
    key = "ruler.smollm2_135m.best"
    assert figures[f"{key}.original.4096"] == 0.75
    assert figures[f"{key}.restored.4096"] == pytest.approx(3.5 / 4)
    assert figures[f"{key}.restored.4096.kept"] == pytest.approx(3.5 / 3)
    assert figures["ruler.smollm2_135m.cpt_alone.restored.4096.kept"] == pytest.approx(2 / 3)
    assert f"{key}.restored.65536.kept" not in figures  # of nothing, nothing is kept
    low, high = (figures[f"{key}.stretched.4096.{end}"] for end in ("low", "high"))
    assert low < figures[f"{key}.stretched.4096"] < high
    assert f"{key}.original.65536.low" not in figures
    assert figures[f"{key}.restored.4096.prompts"] == 4


def test_a_row_for_each_view():
    lines = ruler_table(ruler_figures("h200", RESULT)).splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert cells[0][1:] == ["4,096", "65,536"]
    assert cells[2:] == [
        ["smollm2 135m: original", "0.75", "0.00"],
        ["smollm2 135m: stretched", "0.12", ""],
        ["smollm2 135m: best", "0.88", "0.75"],
        ["smollm2 135m: cpt alone", "0.50", ""],
    ]
    assert ruler_table({}) == "Not measured yet."
