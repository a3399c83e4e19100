"""Tables of trained models: those of several seeds, and the arms that recipes were chosen by."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.cells import cell, cells_of, filled, markdown
from benchmarks.figures import MODEL, selection_arms

#: Arms of recovery.yaml, and the first of them run again, in the order of their table.
_ARMS = {
    "original": "original",
    "best": "`smollm2-135m-64k`",
    "best_again": "a second run of it",
    "linear": "`smollm2-135m-64k-linear`",
    "paper": "`smollm2-135m-64k-paper`",
    "logit_own": "logit KL alone, Muon, own text",
    "cpt": "continued pre-training alone",
    "longred_muon": "LongReD, Muon",
    "yarn_untrained": "YaRN, untrained",
    "start": "YaRN x 10 with attention factor 1, ramp 1 to 4, untrained",
    "dynamic_untrained": "dynamic NTK, untrained",
}
#: What earlier states of recovery.yaml gave.
_EARLIER = {
    "before_next_token": "`smollm2-135m-64k` before the thirteenth round",
    "linear_last_hidden": "`smollm2-135m-64k-linear` before the fourteenth round",
    "logit": "logit KL alone, AdamW, books alone, YaRN's ramp",
    "cpt_ramp": "continued pre-training alone, ramp 1 to 4",
    "longred": "LongReD, AdamW",
}
#: Rows of the README's table, and the columns that fit a page: what is won, and what is lost.
_SHORT = {
    "original": "the original, not stretched",
    "yarn_untrained": "stretched by YaRN, not trained",
    "best": "**linearard**, `smollm2-135m-64k`",
    "cpt": "continued pre-training (CPT)",
    "longred_muon": "LongReD (CPT with distillation)",
}
_SHORT_COLUMNS = {
    "KL to the original": ("kl", ".3f"),
    "short tasks kept": ("tasks_recovery", ".2f"),
    "perplexity at 64k": ("ppl_64k", ".1f"),
    "pass keys found at 64k": ("passkey_64k", ".2f"),
    "retrieval at 32k": ("retrieval_32k", ".2f"),
}


#: The recovery tables: what stays of short text, how long text is read, what is found in it.
_RECOVERY_COLUMNS = {
    "near": {
        "KL": ("kl", ".4f"),
        "top-1": ("top1", ".3f"),
        "same answers": ("same_answers", ".3f"),
        "tasks kept": ("tasks_recovery", ".3f"),
        "LAMBADA kept": ("lambada_recovery", ".3f"),
    },
    "long": {
        "ppl 2k, ratio": ("ppl_2k_ratio", ".3f"),
        "documentation, ratio": ("documentation.ppl_ratio", ".3f"),
        **{f"ppl {n}": (f"ppl_{n}", ".1f") for n in ("8k", "32k", "64k")},
        "tokens": ("tokens", ",.0f"),
        "seeds": ("seeds", ".0f"),
    },
    "find": {
        **{f"pass key {n}": (f"passkey_{n}", ".2f") for n in ("2k", "8k", "16k", "32k", "64k")},
        **{f"retrieval {n}": (f"retrieval_{n}", ".2f") for n in ("2k", "32k")},
    },
}


def _recovery_tables(figures: dict[str, float], name: str, arms: dict[str, str]) -> dict[str, str]:
    """Arms with several seeds: means, with the standard deviation where there is one."""
    found = [arm for arm in arms if f"restoration.{arm}.{MODEL}.ppl_2k" in figures]
    made = {}
    for part, columns in _RECOVERY_COLUMNS.items():
        rows = []
        for arm in found:
            key = f"restoration.{arm}.{MODEL}"
            cells = []
            for figure, form in columns.values():
                mean = cell(figures.get(f"{key}.{figure}"), form)
                deviation = figures.get(f"{key}.{figure}_sd")
                cells.append(f"{mean}\u00a0±\u00a0{deviation:{form}}" if deviation else mean)
            rows.append([arms[arm], *cells])
        made[f"{name}-{part}"] = markdown(["8k to 64k", *columns], rows)
    return made


def _short_table(figures: dict[str, float]) -> str:
    """Means over seeds of a few arms in a few columns."""
    rows = []
    for arm, title in _SHORT.items():
        key = f"restoration.{arm}.{MODEL}"
        rows.append([title, *cells_of(figures, f"{key}.", _SHORT_COLUMNS)])
    return markdown(["8,192 to 65,536 tokens", *_SHORT_COLUMNS], rows)


_SELECTION_COLUMNS = {
    "near": {
        "KL": ("kl", ".4f"),
        "top-1": ("top1", ".3f"),
        "code, KL": ("code_kl", ".3f"),
        "LAMBADA": ("lambada_openai", ".2f"),
        "tasks kept": ("tasks_kept", ".3f"),
        "same answers": ("same_answers", ".3f"),
        "tokens": ("tokens", ",.0f"),
    },
    "long": {f"ppl {n}": (f"ppl_{n}", ".1f") for n in ("2k", "8k", "32k", "64k")},
    "keys": {f"pass key {n}": (f"passkey_{n}", ".2f") for n in ("2k", "8k", "16k", "32k", "64k")},
    "retrieval": {f"retrieval {n}": (f"retrieval_{n}", ".2f") for n in ("2k", "8k", "32k")},
}
#: Those that a first look needs, the first that an arm's group has of each line.
_SELECTION_SHORT = [
    ["KL"],
    ["same answers", "LAMBADA"],
    ["ppl 2k"],
    ["ppl 32k", "ppl 8k"],
    ["pass key 2k"],
    ["pass key 64k", "pass key 32k", "pass key 16k"],
    ["retrieval 32k", "retrieval 8k"],
]

#: Arms of the short table where a round had more than twelve: what its conclusions speak of.
_SELECTION_ROWS = {
    "1": (
        "original",
        "linear, untrained",
        "dynamic NTK, untrained",
        "YaRN, untrained",
        "YaRN, attention factor 1, untrained",
        "ramp 1 to 4, untrained",
        "step at 1 rotation, untrained",
        "ramp 1/8 to 1, logarithmic, untrained",
        "YaRN, attention factor 1: relations + logit KL",
        "ramp 1 to 4: the same",
        "step at 1: the same",
        "step at 1: logit KL alone",
    ),
    "7": (
        "original",
        "YaRN: aligned, short 1088, long 10 x 64k (the recipe then)",
        "linear, fast pairs: batches of 2, 2e-3, long 6 x 64k (the recipe then)",
        "the same, 3e-3, recall .4",
        "logit KL alone, 1e-3, a quarter of the budget",
        "CPT alone, 3e-4, a quarter of the budget",
        "LongReD, 3e-4, a quarter of the budget",
    ),
}


def _group_tables(figures: dict[str, float], group: str) -> dict[str, str]:
    """The arms of one round of choosing: a short table, and one a kind of measure."""
    arms = [arm for arm in selection_arms() if arm["group"] == group]
    keys = {arm["label"]: f"selection.{group}.{arm['slug']}" for arm in arms}

    def table(columns: dict[str, tuple[str, str]], labels: Iterable[str] = keys) -> str:
        rows = [
            [
                label,
                *cells_of(figures, f"{keys[label]}.", columns),
            ]
            for label in labels
        ]
        return markdown(["arm", *columns], rows)

    made, every = {}, {}
    for part, columns in _SELECTION_COLUMNS.items():
        columns = filled(columns, list(keys.values()), figures)
        every |= columns
        if columns:
            made[f"selection-{group}-{part}"] = table(columns)
    first = [next((n for n in names if n in every), None) for names in _SELECTION_SHORT]
    short = {name: every[name] for name in first if name}
    made[f"selection-{group}"] = table(short, _SELECTION_ROWS.get(group, keys))
    return made


def trained_tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables of this file by marker name."""
    made: dict[str, str] = {}
    for group in sorted({arm["group"] for arm in selection_arms()}):
        made |= _group_tables(figures, group)
    return made | {
        **_recovery_tables(figures, "recovery", _ARMS),
        **_recovery_tables(figures, "recovery-earlier", _EARLIER),
        "recovery-short": _short_table(figures),
    }
