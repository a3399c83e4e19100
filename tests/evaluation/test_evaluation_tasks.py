import json

import pytest
import torch

from linearard.errors import DataError
from linearard.evaluation.continuations import Continuation, Encoder, score_continuations
from linearard.evaluation.task_files import read_tasks
from linearard.evaluation.tasks import encode_task, score_task
from linearard.model import ChunkedCausalLM

CHOICES = [
    {
        "context": "The ferry left",
        "choices": ["the harbour a little after seven.", "a cart", "one"],
        "answer": 0,
    },
    {"context": "Rain had", "choices": ["fallen in the night", "bread"], "answer": 1},
    {"context": "The wind turned to", "choices": ["the north", "the mill wheel"], "answer": 0},
    {"context": "A boy counted", "choices": ["wagons", "the market and its noise"], "answer": 1},
]
LABELS = [{**record, "choices": ["yes", "no"], "answer": i % 2} for i, record in enumerate(CHOICES)]
PARTIAL = [
    {
        "context": "The dog saw the boy, and",
        "choices": ["the dog slept.", "the boy slept."],
        "answer": i % 2,
        "context_options": ["The dog saw the boy, and the dog", "The dog saw the boy, and the boy"],
        "continuation": "slept under the bench." if i else "whistled.",
    }
    for i in range(3)
]
LAST_WORD = [{"context": "The post came", "target": "late"}, {"context": "The path", "target": "a"}]


@pytest.fixture
def read(tmp_path):
    def read(records, **options):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (tmp_path / "quiz.jsonl").write_text("\n".join(lines) + "\n")
        return read_tasks(tmp_path, **options)["quiz"]

    return read


@torch.no_grad()
def by_hand(model, tokenizer, context, text):
    """Float64: log-probability of `text` after `context`, and whether it is greedy; no batch."""
    ids = tokenizer(f"{context} {text}").input_ids
    start = len(tokenizer(context).input_ids)
    logits = model.double()(torch.tensor([ids])).logits[0]
    model.float()
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    total = sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids)))
    return total, all(logits[i - 1].argmax() == ids[i] for i in range(start, len(ids)))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_multiple_choice_is_scored_as_by_hand(model, tokenizer, read, small_chunks, batch_size):
    task = encode_task(Encoder(tokenizer), read(CHOICES))
    got = score_task(ChunkedCausalLM(model), task, batch_size=batch_size).describe(seed=0)
    plain = normalised = 0
    for record in CHOICES:
        totals = [by_hand(model, tokenizer, record["context"], c)[0] for c in record["choices"]]
        each = [t / len(c) for t, c in zip(totals, record["choices"], strict=True)]
        plain += totals.index(max(totals)) == record["answer"]
        normalised += each.index(max(each)) == record["answer"]
    assert (got["acc"], got["acc_norm"]) == (plain / 4, normalised / 4)
    assert plain != normalised  # the two can be told apart
    assert got["metric"] == "acc_norm" and got["score"] == got["acc_norm"]
    assert got["chance"] == pytest.approx((1 / 3 + 3 / 2) / 4)


@pytest.mark.parametrize("name", ["byte level", "start token"])
def test_padding_does_not_change_a_score(model, other_tokenizers, small_chunks, name):
    tokenizer = other_tokenizers[name]
    encode = Encoder(tokenizer)
    pairs = [(r["context"], c) for r in CHOICES for c in r["choices"]]
    items = encode.continuations(pairs)
    got = score_continuations(ChunkedCausalLM(model), items, batch_size=5)
    for pair, score in zip(pairs, got, strict=True):
        expected, greedy = by_hand(model, tokenizer, *pair)
        assert score.logprob == pytest.approx(expected, rel=1e-4)
        assert score.greedy is greedy


@pytest.fixture
def shapes(monkeypatch):
    """Batch and tokens of every forward pass."""
    seen, hidden = [], ChunkedCausalLM.hidden

    def recorded(lm, ids):
        seen.append(tuple(ids.shape))
        return hidden(lm, ids)

    monkeypatch.setattr(ChunkedCausalLM, "hidden", recorded)
    return seen


def test_batches_are_of_one_length_and_fit_the_budget(model, tokenizer, monkeypatch, shapes):
    monkeypatch.setattr("linearard.evaluation.batching.TOKENS_PER_FORWARD", 100)
    lengths = [5, 120, 7, 30, 6, 31, 5, 5]
    items = [Continuation(list(range(n)), n - 1) for n in lengths]
    score_continuations(ChunkedCausalLM(model), items, batch_size=4)
    assert shapes == [(1, 120), (3, 31), (4, 6)]  # 7 rides with 31 and 30


def test_long_sequences_are_padded_to_round_lengths_and_score_the_same(model, monkeypatch, shapes):
    make = torch.Generator().manual_seed(0)
    items = [
        Continuation(torch.randint(0, 90, (length,), generator=make).tolist(), start)
        for length, start in ((130, 1), (129, 128), (70, 40), (9, 3))
    ]
    lm = ChunkedCausalLM(model)
    expected = score_continuations(lm, items, batch_size=1)
    monkeypatch.setattr("linearard.capture.sdpa._LONG", 65)
    shapes.clear()
    for got, score in zip(score_continuations(lm, items, batch_size=3), expected, strict=True):
        assert got.logprob == pytest.approx(score.logprob, rel=1e-5)
        assert got.greedy is score.greedy
    assert shapes == [(3, 192), (1, 9)]


def test_texts_encoded_together_are_those_encoded_one_by_one(other_tokenizers):
    pairs = [(r["context"], c) for r in (*CHOICES, *CHOICES) for c in r["choices"]]
    for tokenizer in other_tokenizers.values():
        encode = Encoder(tokenizer)
        for (context, text), item in zip(pairs, encode.continuations(pairs), strict=True):
            alone, whole = encode(context), encode(f"{context} {text}")
            assert item.ids == whole and item.ids[: item.start] == alone[: item.start]
            assert (
                item.start in (len(whole) - 1, len(alone)) or alone[item.start] != whole[item.start]
            )


def test_labels_and_partial_scoring_use_plain_accuracy(model, tokenizer, read):
    lm, encode = ChunkedCausalLM(model), Encoder(tokenizer)
    labels = score_task(lm, encode_task(encode, read(LABELS)), batch_size=4).describe(0)
    assert labels["metric"] == "acc" and labels["chance"] == 0.5
    partial = score_task(lm, encode_task(encode, read(PARTIAL)), batch_size=4).describe(0)
    hits = 0
    for record in PARTIAL:
        totals = [
            by_hand(model, tokenizer, option, record["continuation"])[0]
            for option in record["context_options"]
        ]
        hits += totals.index(max(totals)) == record["answer"]
    assert partial["metric"] == "acc" and partial["score"] == hits / 3


def test_last_words_are_greedy(model, tokenizer, read, oracle):
    fake, expected = oracle
    task = encode_task(Encoder(tokenizer), read(LAST_WORD))
    got = score_task(ChunkedCausalLM(fake), task, batch_size=2).describe(seed=0)
    assert got["score"] == got["acc"] == expected and got["chance"] == 0

    got = score_task(ChunkedCausalLM(model), task, batch_size=2).describe(seed=0)
    totals = [by_hand(model, tokenizer, r["context"], r["target"])[0] for r in LAST_WORD]
    assert got["perplexity"] == pytest.approx(torch.tensor(totals).mean().neg().exp().item(), 1e-4)


def test_tokens_that_merge_over_the_border_are_scored_whole(other_tokenizers):
    tokenizer = other_tokenizers["merges over spaces"]
    context, text = "The pass", "key is"
    alone, whole = tokenizer(context).input_ids, tokenizer(f"{context} {text}").input_ids
    assert whole[: len(alone)] != alone  # the case is real
    (item,) = Encoder(tokenizer).continuations([(context, text)])
    assert item.ids == whole
    assert item.ids[: item.start] == alone[: item.start]
    assert item.ids[item.start] != alone[item.start]


def test_limit_reads_the_first_records_alone(read):
    assert len(read([*LABELS, "{broken"], limit=4)) == 4
    with pytest.raises(DataError, match=r"quiz\.jsonl:5"):
        read([*LABELS, "{broken"])


def test_halves_are_disjoint_and_complete(read):
    records = [{"context": f"Line {i}", "target": "a"} for i in range(7)]
    halves = {split: read(records, split=split, limit=6) for split in ("all", "selection", "test")}
    numbers = {
        split: [int(record.where.rpartition(":")[2]) for record in part]
        for split, part in halves.items()
    }
    assert numbers == {"all": [1, 2, 3, 4, 5, 6], "selection": [1, 3, 5], "test": [2, 4, 6]}
    with pytest.raises(DataError, match=r"for two halves in .*quiz\.jsonl, got one record"):
        read(records, split="test", limit=1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "one JSON object"),
        ("[1]", '"context"'),
        ({"choices": ["a", "b"], "answer": 0}, '"context"'),
        ({"context": "x", "choices": ["a"], "answer": 0}, "two or more"),
        ({"context": "x", "choices": ["a", ""], "answer": 0}, "two or more"),
        ({"context": "x", "choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
        ({"context": "x", "choices": ["a", "b"], "answer": True}, "from 0 to 1"),
        ({"context": "x", "context_options": ["a", "b"], "answer": 0}, '"continuation"'),
        ({"context": "x", "target": 3}, '"target"'),
        ({"context": "x"}, '"choices"'),
        ('{"context": "half \\ud83d", "target": "a"}', '"context"'),
        ('{"context": "x", "choices": ["a", "\\udc00"], "answer": 0}', "two or more"),
        ('{"context": "x", "target": ' + "[" * 10**5, "one JSON object"),
        ('{"context": "x", "target": ' + "1" * 5000 + "}", "one JSON object"),
    ],
)
def test_broken_records_are_named_with_file_and_line(read, record, message):
    with pytest.raises(DataError, match=message) as error:
        read([LABELS[0], "", record])
    assert "quiz.jsonl:3" in str(error.value)


def test_unusable_folders_and_files_are_refused(tmp_path, read):
    with pytest.raises(DataError, match="no such folder"):
        read_tasks(tmp_path / "absent")
    with pytest.raises(DataError, match="no such files"):
        read_tasks(tmp_path)
    with pytest.raises(DataError, match="an empty file"):
        read([""])
    with pytest.raises(DataError, match="several kinds"):
        read([LABELS[0], LAST_WORD[0]])


def test_a_record_without_context_needs_a_start_token(other_tokenizers, read):
    records = read([{"context": "", "target": "a"}])
    with pytest.raises(DataError, match=r"quiz\.jsonl:1"):
        encode_task(Encoder(other_tokenizers["byte level"]), records)
    (item,) = encode_task(Encoder(other_tokenizers["start token"]), records).continuations
    assert item.start == 1


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "quiz.jsonl").mkdir()
    with pytest.raises(
        DataError, match=r"a file that can be read in .*quiz\.jsonl, got Is a directory"
    ):
        read_tasks(tmp_path)
