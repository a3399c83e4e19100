"""`data.train: self`: the original writes what a part reads, once, and the run is otherwise the same."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from kill_run import Kill, kill_once
from tokenizers import processors

import small_run
import tiny
from linearard.cli.main import main
from linearard.data import DataConfig
from linearard.errors import DataError
from linearard.recipe import recipe_from_dict
from linearard.train import prepare_run, self_generated_text, text_generation
from linearard.train.self_generated_text import SelfGeneratedBlocks
from linearard.train.text_generation import Assignment, write_documents

BOS, EOS = 256, 257
AB = tuple(tiny.tiny_tokenizer()("ab", add_special_tokens=False)["input_ids"])
ASSIGNMENT = Assignment(start=(BOS,), end=EOS, tokens=700, seed=3)
#: A part that reads books, and one that reads what the model writes.
PARTS = {
    "books": {"window": 24, "sequences": 8, "objective": {"relations": {"qk": 1, "v": 1}}},
    "own": {
        "window": 24,
        "sequences": 8,
        "batch_size": 2,
        "objective": {"relations": {}, "logit_weight": 1},
        "data": {"train": "self", "repeated_passages": 0.2},
    },
}


def with_own_text(folder, base, **stage):
    """A recipe of one such stage, with dropout: twelve steps."""
    recipe = small_run.small_recipe(folder, base)
    recipe["stages"] = {
        "only": {"learning_rate": 1e-2, "warmup_steps": 1, "save_steps": 3, "parts": PARTS} | stage
    }
    return recipe


def written(folder):
    """The files that hold what a model wrote."""
    return sorted(Path(folder, "cache").glob("self-*.jsonl"))


@pytest.fixture
def no_writing(monkeypatch):
    """Writing would fail the test."""

    def write(*arguments, **options):
        raise AssertionError("wrote the text again")

    return lambda: monkeypatch.setattr(self_generated_text, "write_documents", write)


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """A folder with a finished run and its cache."""
    folder = tmp_path_factory.mktemp("own")
    small_run.train(with_own_text(folder, base_folder))
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


class TestRuns:
    def test_text_that_is_there_is_read_and_gives_the_same_run(
        self, finished, copied, base_folder, no_writing
    ):
        """Random numbers of the training are where they would be without the writing."""
        no_writing()
        (before,) = written(finished)
        recipe = with_own_text(copied, base_folder)
        shutil.rmtree(recipe["output_dir"])
        run = small_run.train(recipe)
        assert small_run.final_bytes(run) == small_run.final_bytes(finished / "run")
        (after,) = written(copied)
        assert after.read_bytes() == before.read_bytes()

    def test_the_file_named_as_text_gives_the_same_run(self, finished, base_folder, tmp_path):
        (file,) = written(finished)
        named = PARTS["own"] | {"data": PARTS["own"]["data"] | {"train": str(file), "pack": True}}
        recipe = with_own_text(tmp_path, base_folder, parts=PARTS | {"own": named})
        run = small_run.train(recipe)
        assert not written(tmp_path)
        assert small_run.losses(run) == small_run.losses(finished / "run")

    def test_a_resumed_run_reads_it_too(self, finished, copied, no_writing):
        no_writing()
        run = copied / "run"
        shutil.rmtree(run / "final")
        (run / "stage1-only" / "checkpoint-12" / "complete.json").unlink()
        arguments = ["--output-dir", str(run), "--data.cache_dir", str(copied / "cache")]
        flags = ["--resume", "--quiet"]
        assert main(["train", str(run / "recipe.yaml"), *arguments, *flags]) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished / "run")

    @pytest.mark.parametrize("kill", [Kill(4, 0.0, "cache"), Kill(9, 0.0)], ids=str)
    def test_killed(self, kill, finished, base_folder, tmp_path):
        recipe = with_own_text(tmp_path, base_folder)
        path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
        arguments = ["train", str(path), "--quiet", "--resume"]
        assert "killed, last seen" in kill_once(arguments, tmp_path, kill)
        assert main(["train", str(path), "--quiet", "--resume"]) == 0
        run = tmp_path / "run"
        assert small_run.final_bytes(run) == small_run.final_bytes(finished / "run")

    def test_half_written_text_is_none(self, base_folder, tmp_path, monkeypatch):
        recipe = with_own_text(tmp_path, base_folder)
        path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")

        def killed(*arguments, **options):
            yield "the beginning"
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(self_generated_text, "write_documents", killed)
            assert main(["train", str(path), "--quiet"]) == 130
        assert not written(tmp_path) and not list((tmp_path / "cache").glob(".*"))

    def test_changed_text_is_written_again(self, copied):
        """Someone has changed the file: its hash says so, and the run goes on with the text of before."""
        run = copied / "run"
        (run / "final" / "linearard.json").unlink()
        (file,) = written(copied)
        before = file.read_text()
        file.write_text("\n".join(reversed(before.splitlines())) + "\n")
        arguments = ["--output-dir", str(run), "--data.cache_dir", str(copied / "cache")]
        assert main(["train", str(run / "recipe.yaml"), *arguments, "--resume", "--quiet"]) == 0
        assert before in [path.read_text() for path in written(copied)]

    def test_a_whole_recipe(self, base_folder, tmp_path):
        """All parts of all stages, a text for each, evaluated on what was given for it."""
        evaluation = {"perplexity_windows": [32], "agreement_window": 32, "passkey_lengths": []}
        recipe = small_run.small_recipe(tmp_path, base_folder, data__train="self")
        recipe["evaluation"] = evaluation | {"perplexity_tokens": 128, "agreement_tokens": 128}
        run = small_run.train(recipe)
        assert len(written(tmp_path)) == 2
        assert json.loads((run / "evaluation.json").read_text())["stages"]["cpt"]["tokens"] == 768

    def test_several_processes_write_once(self, base_folder, tmp_path):
        recipe = with_own_text(tmp_path, base_folder)
        path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
        result = small_run.launch("train", str(path), "--quiet", processes=2)
        assert result.returncode == 0, result.stderr
        assert len(written(tmp_path)) == 1 and (tmp_path / "run" / "final").exists()

    def test_nothing_is_written_before_there_is_a_model(self, base_folder, tmp_path):
        run = prepare_run(recipe_from_dict(with_own_text(tmp_path, base_folder)), progress=False)
        run.claim.close()
        (own,) = run.texts["only"].unwritten
        assert len(own) == 8 and own.tokens == 192 and len(run.texts["only"].windows) == 12
        assert not written(tmp_path)


class TestBlocks:
    @pytest.fixture
    def cut(self, restorable, tmp_path):
        """Blocks that a tiny model has written."""

        def make(window=41, count=7, **fields):
            data = DataConfig("self", cache_dir=str(tmp_path / "cache"), **fields)
            blocks = SelfGeneratedBlocks(data, restorable.tokenizer, window, count, 64)
            blocks.write(restorable, progress=False)
            return blocks

        return make

    def test_as_many_as_asked_and_packed(self, cut):
        blocks = cut()
        rows = [blocks[index]["input_ids"] for index in range(7)]
        assert all(len(row) == 41 and row[0] == BOS for row in rows)
        assert sum((row == EOS).sum() for row in rows) > 0  # between documents
        assert len({tuple(row.tolist()) for row in rows}) == 7

    def test_limits_of_other_text_are_none_for_it(self, cut):
        """A column name, a number of documents, a share that is held out: for text that exists."""
        plain = cut()
        other = cut(text_column="x", max_documents=1, validation_fraction=0.9, pack=True)
        assert other.fingerprint == plain.fingerprint

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"self_start": "a"}, {"window": 40}, {"count": 8}]
    )
    def test_what_decides_the_text(self, cut, tmp_path, change):
        cut()
        cut(repeated_passages=0.3)  # this does not
        assert len(written(tmp_path)) == 1
        cut(**change)
        assert len(written(tmp_path)) == 2

    def test_another_model_writes_another_text(self, restorable, tmp_path):
        data = DataConfig("self", cache_dir=str(tmp_path / "cache"))
        others = [{"seed": 1}, {"rope_theta": 500.0}]
        models = [restorable, *(tiny.tiny_restorable(model=tiny.tiny_model(**o)) for o in others)]
        for model in models:
            SelfGeneratedBlocks(data, model.tokenizer, 24, 3, 64).write(model, progress=False)
        assert len(written(tmp_path)) == 3

    @pytest.mark.parametrize("kind", ["lora", "direct"])
    @pytest.mark.parametrize("part", ["embed_tokens", "q_proj", "v_proj", "down_proj"])
    def test_every_weight_of_the_original_counts(self, part, kind, tmp_path):
        """One number of one matrix, trained or not; the model's own fingerprint is of a sample."""
        data = DataConfig("self", cache_dir=str(tmp_path / "cache"))
        models = [tiny.tiny_model() for _ in range(3)]
        (*_, last) = (p for n, p in models[1].named_parameters() if n.endswith(f"{part}.weight"))
        with torch.no_grad():
            last[-1, -1] += 1
        for model in models:
            restorable = tiny.tiny_restorable(model=model, kind=kind)
            SelfGeneratedBlocks(data, restorable.tokenizer, 24, 3, 64).write(
                restorable, progress=False
            )
        assert len(written(tmp_path)) == 2

    @pytest.mark.parametrize("start", ["", "ab" * 40])
    def test_a_start_without_tokens_or_room(self, start, monkeypatch):
        data = DataConfig("self", self_start=start or None)
        if not start:  # no tokenizer here leaves nothing of a text
            monkeypatch.setattr(self_generated_text, "_borders", lambda *_: ((), EOS))
        with pytest.raises(DataError, match=r"data\.self_start of 1 to 63 tokens"):
            SelfGeneratedBlocks(data, tiny.tiny_tokenizer(), 24, 1, 64)

    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            (None, ((BOS,), EOS)),
            ("ab", ((BOS, *AB), EOS)),
            ("<s>ab", ((BOS, *AB), EOS)),
            ("</s>", ((BOS, EOS), EOS)),
        ],
    )
    def test_what_documents_stand_between(self, start, expected):
        """What the tokenizer puts before every text stands before these, too, and once."""
        assert self_generated_text._borders(start, tiny.tiny_tokenizer()) == expected

    def test_two_tokens_before_every_text(self):
        tokenizer = tiny.tiny_tokenizer()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> <s> $A", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
        assert self_generated_text._borders(None, tokenizer) == ((EOS, BOS), EOS)
        assert self_generated_text._borders("ab", tokenizer) == ((EOS, BOS, *AB), EOS)

    def test_a_separator_of_documents_ends_them_too(self):
        """The EOS of a chat model ends a turn; a conversation goes on behind it."""
        tokenizer = tiny.tiny_tokenizer()
        tokenizer.bos_token = None
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
        assert self_generated_text._borders(None, tokenizer) == ((EOS,), EOS)
        assert self_generated_text._borders("<s>", tokenizer) == ((BOS,), BOS)

    def test_a_tokenizer_without_an_end(self):
        tokenizer = tiny.tiny_tokenizer()
        tokenizer.eos_token = None
        with pytest.raises(DataError, match=r"end-of-text token, for data\.train: self"):
            SelfGeneratedBlocks(DataConfig("self"), tokenizer, 24, 1, 64)


def drawn_by(monkeypatch, draw):
    """Let documents be drawn in another way."""
    monkeypatch.setattr(text_generation, "_way_to_draw", lambda *arguments: draw)


class TestWriting:
    @pytest.mark.parametrize("seed", range(6))
    def test_a_model_that_mostly_ends_at_once(self, seed, monkeypatch):
        """A few documents without a token are no reason to give up."""
        chance = torch.Generator().manual_seed(seed)

        def draw(writer, count, length, bar):
            writer.documents = [
                [65] * 40 if torch.rand((), generator=chance) < 0.1 else [] for _ in range(count)
            ]

        drawn_by(monkeypatch, draw)
        assert write_documents(tiny.tiny_restorable(), ASSIGNMENT, progress=False)

    def test_a_batch_asks_for_an_eighth_more_than_is_missing(self, monkeypatch):
        counts = []

        def draw(writer, count, length, bar):
            counts.append(count)
            writer.documents = [[65] * 19] * count  # with what joins them, 20 tokens each

        drawn_by(monkeypatch, draw)
        assignment = Assignment((BOS,), EOS, 4000, 0)
        texts = write_documents(tiny.tiny_restorable(), assignment, progress=False)
        length = tiny.WINDOW - 1
        first = math.ceil(4000 / length * 1.125)
        assert counts == [first, math.ceil((4000 - 20 * first) / 20 * 1.125)]
        assert len(texts) == 200

    @pytest.mark.parametrize("kind", ["lora", "direct"])
    def test_the_original_writes_whatever_was_trained(self, kind):
        fresh = write_documents(tiny.tiny_restorable(), ASSIGNMENT, progress=False)
        trained = tiny.tiny_restorable(kind=kind, **({"dropout": 0.5} if kind == "lora" else {}))
        tiny.perturb_adapter(trained)
        trained.model.train()
        settings = trained.model.generation_config
        settings.repetition_penalty, settings.top_k, settings.temperature = 5.0, 3, 0.1
        before = torch.get_rng_state()
        assert write_documents(trained, ASSIGNMENT, progress=False) == fresh
        assert torch.equal(torch.get_rng_state(), before)
        assert trained.model.training and trained.model.generation_config is settings

    @pytest.mark.parametrize("ours", [True, False])
    @torch.no_grad()
    def test_tokens_are_as_surprising_as_the_original_expects(self, ours, monkeypatch):
        """Mean surprise is mean entropy at temperature 1 from the whole vocabulary, and there alone."""
        restorable = tiny.tiny_restorable()
        tiny.perturb_adapter(restorable)
        monkeypatch.setattr(text_generation, "has_whole_cache", lambda model: ours)
        writer = text_generation._Documents(60, EOS)
        with text_generation._writer(restorable, 0) as model:
            draw = text_generation._way_to_draw(restorable, model, ASSIGNMENT)
            draw(writer, 60, 60, text_generation._Bar(_NoBar()))
        rows = writer.documents
        gaps = {}
        for view in ("original", "restored"):
            gap = []
            for row in rows:
                ids = torch.tensor([[BOS, *row]])
                with restorable.view(view):
                    logs = restorable.model(ids, use_cache=False).logits[0, :-1].double()
                logs = logs.log_softmax(-1)
                surprise = -logs.gather(1, ids[0, 1:, None])[:, 0]
                gap.append(surprise + (logs.exp() * logs).sum(-1))
            gap = torch.cat(gap)
            gaps[view] = (gap.mean() / gap.std() * math.sqrt(len(gap))).item()
        assert abs(gaps["original"]) < 4 < gaps["restored"]

    def test_they_end_where_the_model_ends_them_and_hold_enough(self):
        restorable = tiny.tiny_restorable()
        assignment = Assignment((BOS,), 32, 900, 0)  # a common byte as the end
        texts = write_documents(restorable, assignment, progress=False)
        encoded = restorable.tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert sum(len(ids) + 1 for ids in encoded) >= 900
        assert sum(len(ids) + 1 for ids in encoded[:-1]) < 900  # no document more than is needed
        assert all(ids and 32 not in ids for ids in encoded)
        lengths = {len(text.replace("</s>", "e").replace("<s>", "s")) for text in texts}
        assert max(lengths) <= tiny.WINDOW - 1 and len(lengths) > 3

    def test_batches_are_as_large_as_memory_allows(self, monkeypatch):
        restorable, sizes = tiny.tiny_restorable(), []
        draw_texts = text_generation.draw_texts

        def watched(lm, start, count, *rest):
            sizes.append(count)
            return draw_texts(lm, start, count, *rest)

        monkeypatch.setattr(text_generation, "draw_texts", watched)
        # 3 layers, 2 heads, keys and values of 8 float32 numbers; logits of 258
        a_document = 2 * 3 * 2 * 8 * 4 * tiny.WINDOW + 16 * tiny.VOCAB
        monkeypatch.setattr(text_generation, "_CPU_BYTES", 5 * a_document + 1)
        write_documents(restorable, ASSIGNMENT, progress=False)
        assert max(sizes) == 5 and len(sizes) > 1

    def test_a_model_that_says_nothing(self, monkeypatch):
        drawn_by(monkeypatch, lambda *arguments: None)
        with pytest.raises(DataError, match=r"got \d{3,4} documents without any, after the tokens"):
            write_documents(tiny.tiny_restorable(), ASSIGNMENT, progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu():
    """The same text twice in bfloat16, and no random number of the caller's is used."""
    texts = []
    for _ in range(2):
        model = tiny.tiny_model().to("cuda", torch.bfloat16)
        restorable = tiny.tiny_restorable(model=model)
        before = torch.cuda.get_rng_state()
        texts.append(write_documents(restorable, ASSIGNMENT, progress=False))
        assert torch.equal(torch.cuda.get_rng_state(), before)
    assert texts[0] == texts[1]


class _NoBar:
    n = total = 0

    def update(self, tokens):
        """Nothing to show."""
