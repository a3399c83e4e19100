import json
import math
import re
from html.parser import HTMLParser

import pytest

from linearard.evaluation import (
    comparison_table,
    render_report,
    render_runs,
    summarise,
    write_report,
)
from linearard.evaluation.report.svg import shaded_cells

HOSTILE = "<script>&$x_1$'\""


def perplexity(ppl):
    by_position = [{"start": 2**i, "end": 2 ** (i + 1), "nll": 3.0 - i / 10} for i in range(6)]
    return {"ppl": ppl, "ppl_ci95": [0.9 * ppl, 1.1 * ppl], "by_position": by_position}


def view(kl, ppl, score, passkey):
    cells = [
        {"length": n, "depth": d, "accuracy": passkey, "prompts": 2}
        for n in (2048, 4096)
        for d in (0.0, 1.0)
    ]
    task = {"metric": "acc_norm", "score": score, "ci95": [score - 0.05, score + 0.05]}
    return {
        "perplexity": {"512": perplexity(ppl), "2048": perplexity(0.9 * ppl)},
        "passkey": {"accuracy": passkey, "ci95": [passkey, passkey], "cells": cells},
        "tasks": {"arc_easy": {**task, "retention": (score - 0.25) / 0.25}},
    } | (
        {"agreement": {"kl": kl, "kl_ci95": None, "top1": 1 - kl / 4, "top1_ci95": None}}
        if kl
        else {}
    )


def share(accuracy):
    return {"accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1], "prompts": 20}


def like(same, kl):
    """Answers compared with the original's."""
    return {
        "same_answers": same,
        "same_answers_ci95": [same - 0.05, min(same + 0.05, 1)],
        "answer_kl": kl,
        "answer_kl_ci95": [kl / 2, 2 * kl],
    }


def extended(part, ppl, kl, kept, found, loops):
    """A view with everything that an evaluation can measure."""
    at = {n: share(found / (i + 1)) for i, n in enumerate(("2048", "32768"))}
    part["passkey"]["by_length"] = at
    part["retrieval"] = {
        **share(found),
        "by_length": at,
        "cells": part["passkey"]["cells"],
        "tasks": {task: {**share(found), "by_length": at} for task in ("single", "variables")},
    }
    part["tasks"]["arc_easy"]["retention_ci95"] = [kept - 0.1, kept + 0.1]
    part["tasks"]["boolq"] = part["tasks"]["arc_easy"]
    part["task_average"] = {
        "score": 0.25 + kept / 4,
        "ci95": [0.2 + kept / 4, 0.3 + kept / 4],
        "tasks": 2,
        "retention": kept,
        "retention_ci95": [kept - 0.1, kept + 0.1],
        "raw_retention": (1 + kept) / 2,
        "raw_retention_ci95": [(1 + kept) / 2 - 0.05, (1 + kept) / 2 + 0.05],
        **like((1 + kept) / 2, (kl or 0) / 10),
    }
    part["texts"] = {"code": {"ppl": ppl, "ppl_ci95": [ppl - 1, ppl + 1]}}
    if kl:
        part["texts"]["code"]["agreement"] = {"kl": kl, "kl_ci95": None, "top1": 0.5}
        spans = [(0, 128), (128, 256), (256, 512)]
        part["agreement"]["by_position"] = [
            {"start": a, "end": b, "kl": b * kl / 256} for a, b in spans
        ]
    part["generation"] = {
        "repeated_4grams": loops / 2,
        "repeated_4grams_ci95": [loops / 2, loops],
        "loops": loops,
        "loops_ci95": [loops - 0.1, loops + 0.1],
    }


@pytest.fixture
def whole(result):
    """A result with everything."""
    views = result["views"]
    extended(views["original"], 5.0, None, 1.0, 0.8, 0.2)
    extended(views["stretched"], 50.0, 3.0, 0.1, 0.0, 0.9)
    extended(views["restored"], 6.0, 0.3, 0.9, 0.6, 0.3)
    return result


@pytest.fixture
def result():
    return {
        "views": {
            "original": view(None, 20.0, 0.5, 1.0),
            "stretched": view(2.0, 200.0, 0.25, 0.0),
            "restored": view(0.5, 40.0, 0.4, 0.25),
        },
        "meta": {
            "model": "org/model",
            "device": "cpu",
            "dtype": "float32",
            "date": "2026-01-01T00:00:00+00:00",
            "commit": None,
        },
        "stretch": {
            "scaling": {"rope_type": "yarn", "factor": 4},
            "native_window": 2048,
            "target_window": 8192,
        },
        "relations": {
            "stretched": {"q": [0.5, 0.7], "k": [0.4, 0.5]},
            "restored": {"q": [0.05, 0.07], "k": [0.04, 0.05]},
        },
        "relation_heads": {
            "stretched": {"q": [[0.4, 0.6], [0.6, 0.8]], "k": [[0.4], [0.5]]},
            "restored": {"q": [[0.05, 0.05], [0.04, 0.1]], "k": [[0.04], [0.05]]},
        },
        "attention": {
            "layer": 1,
            "head": 0,
            "tokens": 6,
            "bin": 2,
            "views": {
                view: [[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]
                for view in ("original", "stretched", "restored")
            },
        },
        "stages": {"restore": {"steps": 2, "tokens": 4096, "seconds": 1.5}},
        "training": {"restore": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}, {"step": 2}]},
    }


def test_nothing_is_left_of_what_the_original_guesses(result):
    """A score a hundredth above chance makes 900 % of a tenth above it."""
    task = result["views"]["original"]["tasks"]["arc_easy"]
    task["chance"] = 0.25
    for low, shown in ((0.26, True), (0.25, False)):
        task["ci95"] = [low, 1.0]
        (row,) = [row for row in summarise(result) if row.label == "arc_easy (acc_norm)"]
        assert bool(row.retained) == shown


def test_recovered_is_the_share_of_the_gap_that_is_closed(result):
    rows = {row.label: row for row in summarise(result)}
    assert rows["KL to original (nats)"].recovered == pytest.approx(0.75)
    assert rows["top-1 agreement"].recovered == pytest.approx(0.75)
    assert rows["perplexity, 512 tokens"].recovered == pytest.approx(math.log(5) / math.log(10))
    assert rows["arc_easy (acc_norm)"].recovered == pytest.approx(0.6)
    assert rows["arc_easy (acc_norm)"].retained["restored"] == pytest.approx(0.6)
    assert rows["pass key"].recovered == pytest.approx(0.25)


def test_nothing_lost_is_nothing_to_recover(result):
    result["views"]["stretched"] = view(2.0, 20.1, 0.46, 1.0)
    rows = {row.label: row for row in summarise(result)}
    assert rows["perplexity, 512 tokens"].recovered is None
    assert rows["arc_easy (acc_norm)"].recovered is None  # inside the original's interval
    assert rows["pass key"].recovered is None


def test_a_loss_too_small_to_speak_of_is_nothing_to_recover(result):
    """A model that its stretching leaves alone: KL .0025, after training .0087 (once "-247 %")."""
    views = result["views"]
    views["stretched"]["agreement"] |= {"kl": 0.0025, "top1": 0.991}
    views["restored"]["agreement"] |= {"kl": 0.0087, "top1": 0.97}
    rows = {row.label: row for row in summarise(result)}
    assert rows["KL to original (nats)"].recovered is None
    assert rows["top-1 agreement"].recovered is None


def test_what_got_worse_is_said_in_a_word(result):
    result["views"]["stretched"]["agreement"]["kl"] = 0.1
    result["views"]["restored"]["agreement"]["kl"] = 0.347
    assert summarise(result)[0].recovered == pytest.approx(-2.47)
    (line,) = (x for x in comparison_table(result).splitlines() if x.startswith("KL"))
    assert line.split()[-1] == "worse"
    html = render_report(result)
    assert "worse than stretched" in html and "247" not in html


def test_nothing_recovered_is_no_success(result):
    result["views"]["restored"]["agreement"]["kl"] = 2.0
    html = render_report(result)
    assert '<p class="chip bad">nothing of the loss recovered</p>' in html
    assert '<p class="chip good">75.0 % of the loss recovered</p>' in html  # of the top-1 agreement


def test_the_table_has_a_row_a_metric_and_a_column_a_view(result):
    lines = comparison_table(result).splitlines()
    assert lines[0].split() == ["original", "stretched", "restored", "recovered"]
    assert len(lines) == 2 + len(summarise(result))
    (kl,) = (line for line in lines if line.startswith("KL"))
    assert kl.split()[-5:] == ["0.0000", "2.000", "0.5000", "75.0", "%"]
    del result["views"]["restored"]
    assert comparison_table(result).splitlines()[0].split() == ["original", "stretched"]


def test_rows_of_everything(whole):
    rows = {row.label: row for row in summarise(whole)}
    assert [*dict.fromkeys(row.group for row in rows.values())] == [
        "held-out text", "other text", "tasks", "retrieval", "free generation",
    ]  # fmt: skip
    assert rows["code: KL to original (nats)"].values == {
        "original": 0, "stretched": 3.0, "restored": 0.3,
    }  # fmt: skip
    assert rows["code: perplexity"].recovered == pytest.approx(math.log(50 / 6) / math.log(10))
    assert rows["pass key, 2,048 tokens"].values["restored"] == 0.6
    assert rows["pass key, 32,768 tokens"].values["restored"] == 0.3
    assert rows["retrieval, 2,048 tokens"].retained["restored"] == pytest.approx(0.75)
    assert rows["retrieval, 32,768 tokens"].retained == {}  # the original finds too little
    average = rows["task average"]
    assert average.retained["restored"] == 0.9
    assert average.retained_intervals["restored"] == [0.8, 1.0]
    assert rows["task average / original's"].values["restored"] == pytest.approx(0.95)
    answers = rows["answers as the original's"]
    assert answers.values["restored"] == answers.retained["restored"] == pytest.approx(0.95)
    assert answers.recovered == pytest.approx((0.95 - 0.55) / (1 - 0.55))
    assert rows["KL of answers to original (nats)"].recovered == pytest.approx(0.9)
    loops = rows["outputs that end in a loop"]
    assert loops.lower_is_better and loops.recovered == pytest.approx(0.6 / 0.7)
    whole["views"]["stretched"]["generation"] |= {"loops": 0.25}  # inside the original's interval
    loops = {row.label: row for row in summarise(whole)}["outputs that end in a loop"]
    assert loops.recovered is None


def test_the_page_of_everything(whole):
    html = render_report(whole)
    tags = parse(html)
    # Perplexity, loss and KL by position, training, two relations by layer; two by head and one head's
    # attention, of two and three views.
    assert tags.tags.count("svg") == 6 + 2 * 2 + 3 and len(set(tags.ids)) == len(tags.ids)
    for shown in ("Retrieval from held-out text", "free generation", "task average", "variables"):
        assert shown in tags.text
    assert render_report(json.loads(json.dumps(whole))) == html


def test_a_view_that_lacks_a_length_or_a_section_is_no_trouble(whole):
    restored = whole["views"]["restored"]
    del restored["passkey"], restored["texts"], restored["generation"]
    rows = {row.label: row for row in summarise(whole)}
    assert "restored" not in rows["pass key, 2,048 tokens"].values
    assert not any(label.startswith("code") for label in rows)
    assert comparison_table(whole)
    render_report(whole)


def test_the_table_of_nothing_is_empty_but_works():
    assert "original" in comparison_table({"views": {"original": {}}})


def test_a_number_that_was_not_finite_is_a_gap(result):
    result["views"]["stretched"]["perplexity"]["512"] |= {"ppl": None, "ppl_ci95": None}
    (line,) = (x for x in comparison_table(result).splitlines() if x.startswith("perplexity, 512"))
    assert line.split()[-4:] == ["20.00", "–", "40.00", "–"]
    render_report(result)


class Tags(HTMLParser):
    """What a browser would see."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.open, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(html):
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    return tags


def test_the_page_stands_alone(result):
    html = render_report(result, recipe={"model": "org/model"})
    assert not re.search(r"https?:|//\w|@import|<link|<script|src=", html)
    tags = parse(html)
    assert "restore: 4,096 tokens in 2 s." in tags.text
    assert "2,048 → 8,192 tokens, yarn × 4" in tags.text
    assert len(set(tags.ids)) == len(tags.ids)
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert references <= set(tags.ids)
    assert html == render_report(result, recipe={"model": "org/model"})  # and is reproducible


def test_sections_without_data_are_absent(result):
    for key in ("relations", "relation_heads", "attention", "training", "stretch"):
        del result[key]
    for part in result["views"].values():
        for key in ("perplexity", "passkey"):
            del part[key]
    html = render_report(result)
    for absent in ("Perplexity by", "Loss by", "Pass key", "Relations", "Training<", "Recipe"):
        assert absent not in html
    assert "Where one head looks" not in html and "svg" not in parse(html).tags
    result["views"] = {"original": {}}
    assert "svg" not in parse(render_report(result)).tags


def test_names_are_escaped_everywhere(result):
    result["meta"]["model"] = HOSTILE
    result["views"][HOSTILE] = view(1.0, 100.0, 0.3, 0.5)
    for part in result["views"].values():
        part["tasks"] = {HOSTILE: next(iter(part["tasks"].values()))}
    result["relations"][HOSTILE] = {HOSTILE: [1.0]}
    result["training"][HOSTILE] = [{"step": 1, "loss": 2.0}]
    tags = parse(render_report(result, recipe={HOSTILE: HOSTILE}))
    assert "script" not in tags.tags
    assert tags.text.count("<script>") > 10
    runs = parse(render_runs({HOSTILE: result, "b": result}))
    assert "script" not in runs.tags and runs.text.count("<script>") > 10


def test_long_names_leave_room_for_the_plots(result):
    long = "a rather long name " * 5
    result["views"] = {**result["views"], long: view(1.0, 90.0, 0.3, 0.5)}
    for part in result["views"].values():
        part["tasks"] = {long: part["tasks"]["arc_easy"]}
    result["relations"][long] = {long: [1.0]}
    result["training"] |= {long + str(i): [{"step": 1, "loss": 2.0}] for i in range(5)}
    render_report(result)  # matplotlib warns where nothing is left of the axes


def test_it_is_written_where_asked_and_matplotlib_is_left_alone(result, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    path = write_report(result, tmp_path / "new" / "report.html", recipe={"seed": 1})
    assert dict(matplotlib.rcParams) == before
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "&#34;seed&#34;: 1" in html


def test_the_json_read_back_gives_the_same_page(result):
    assert render_report(json.loads(json.dumps(result))) == render_report(result)


def test_the_title_is_the_models_name_and_restored_stands_beside_original(result):
    result["views"] = dict(reversed(result["views"].items()))
    html = render_report(result)
    assert "<h1>org/model</h1>" in html
    head = html[html.index("<thead><tr><th></th><th>") : html.index("recovered</th>")]
    assert re.findall(r"</span>(\w+)</th>", head) == ["original", "restored", "stretched"]


def test_shares_are_heat_maps_of_length_and_depth(whole):
    html = render_report(whole)
    for name in ("Pass key", "Retrieval from held-out text"):
        section = html[html.index(f"<h2>{name}</h2>") :].partition("</section>")[0]
        assert re.findall(r'<th scope="col">(\w+)', section) == 3 * ["2k", "4k"]
        assert re.findall(r'<th scope="row">(\w+%)', section) == 3 * ["0%", "100%"]
    colours = dict(re.findall(r'<td style="background: ([^"]+)">(\d+)</td>', html))
    none, all_ = (next(c for c, n in colours.items() if n == share) for share in ("0", "100"))
    assert none == "color-mix(in oklab, var(--half) 0%, var(--none))"
    assert all_ == "color-mix(in oklab, var(--all) 100%, var(--half))"


def test_cells_are_shaded_by_the_logarithm():
    drawn = shaded_cells([[1e-3, 1.0], [0.0, 10**-1.5, 1e-2]], 1e-3, 1.0, square=True)
    assert drawn.startswith('<svg class="cells" viewBox="0 0 3 2" role="img">')
    assert re.findall(r'fill-opacity="([\d.]+)" d="([^"]+)"', drawn) == [
        ("0.33", "M2 1h1v1h-1z"), ("0.50", "M1 1h1v1h-1z"), ("1.00", "M1 0h1v1h-1z"),
    ]  # fmt: skip


def test_any_number_of_runs_on_one_page(whole, result):
    other = json.loads(json.dumps(result))
    other["views"]["restored"]["agreement"]["kl"] = 0.125
    untouched = {**other, "views": {"original": other["views"]["original"]}}
    html = render_runs({"a": whole, "b": other, "c": untouched})
    tags = parse(html)
    assert "<h1>3 runs</h1>" in html and not re.search(r"https?:|<script|src=", html)
    assert len(set(tags.ids)) == len(tags.ids)
    kl = html[html.index("KL to original (nats) <span") :].partition("</h3>")[2]
    kl = kl.partition("<h3>")[0]
    assert re.findall(r'<div class="bar" title="(\w+)">', kl) == ["original", "a", "b"]
    widths = [float(w) for w in re.findall(r'<b style="width: ([\d.]+)%', kl)]
    assert widths == [0.0, 80.0, 20.0]
    assert tags.text.count("arc_easy (acc_norm)") == 1
