"""Texts that are drawn together in a cache of fixed room are what the model would draw one by one."""

import pytest
import torch

import tiny
from linearard.model import ChunkedCausalLM
from linearard.train import row_sampling
from linearard.train.row_sampling import draw_texts, fits, hold_back

START = (256, 7, 91)


class Recorder:
    """A guide that ends some texts early, gives some tokens and bars others."""

    steers, control = True, (5, 6)

    def __init__(self, ends, steers=True):
        self.texts = [[] for _ in ends]
        self.ends, self.steers = ends, steers

    def wishes(self, texts):
        self.asked = list(texts)
        given = [33 if len(self.texts[text]) % 7 == 2 else -1 for text in texts]
        return torch.tensor([[6] * len(given), [8] * len(given), given])

    def take(self, texts, tokens):
        for text, new in zip(texts, tokens, strict=True):
            self.texts[text] += new

    def is_over(self, text):
        return len(self.texts[text]) >= self.ends[text]


def language_model(architecture, **changes):
    changes = {"max_position_embeddings": 512, "sliding_window": 512} | changes
    return ChunkedCausalLM(
        tiny.tiny_restorable(model=tiny.tiny_model(architecture, **changes)).model
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("steers", [True, False])
@torch.no_grad()
def test_every_step_is_the_model_s(architecture, steers, monkeypatch):
    """Hidden states after every room, and when texts are left out, beside a pass over the whole text."""
    monkeypatch.setattr(row_sampling, "_ROOM", 9)
    lm = language_model(architecture)
    guide, compared = Recorder([30, 4, 23, 13, 30], steers), []
    rows = []
    init, keep = row_sampling._Rows.__init__, row_sampling._Rows.keep

    def remember(self, *arguments):
        rows.append(self)
        init(self, *arguments)

    def compare(self):
        alive = [text for text in range(5) if len(guide.texts[text]) == self._used - len(START)]
        assert len(alive) == len(self.hidden)
        ids = torch.tensor([[*START, *guide.texts[text]] for text in alive])
        torch.testing.assert_close(self.hidden, lm.hidden(ids)[:, -1], rtol=1e-4, atol=1e-4)
        compared.append(len(alive))

    def keeping(self, index):
        compare(self)
        keep(self, index)

    monkeypatch.setattr(row_sampling._Rows, "__init__", remember)
    monkeypatch.setattr(row_sampling._Rows, "keep", keeping)
    told = []
    draw_texts(lm, START, 5, 30, guide, told.append)
    compare(rows[0])
    assert len(compared) > 2 and compared[0] == 5 and compared[-1] < 5
    assert sum(told) == sum(map(len, guide.texts))
    if steers:
        drawn = [token for text in guide.texts for token in text]
        assert not {5, 8} & set(drawn) and all(text[2] == 33 for text in guide.texts)


@torch.no_grad()
def test_drawn_as_often_as_the_model_says():
    lm = language_model("llama")
    guide = Recorder([1] * 20_000, steers=False)
    torch.manual_seed(1)
    draw_texts(lm, START, 20_000, 1, guide, lambda tokens: None)
    found = torch.bincount(torch.tensor(guide.texts)[:, 0], minlength=tiny.VOCAB).double()
    expected = 20_000 * lm.logits(lm.hidden(torch.tensor([START]))[:, -1]).double().softmax(-1)[0]
    often = expected > 5
    chi = ((found - expected)[often] ** 2 / expected[often]).sum()
    assert chi < often.sum() + 5 * (2 * often.sum()) ** 0.5
    assert chi > often.sum() - 5 * (2 * often.sum()) ** 0.5


def test_a_model_that_looks_elsewhere_is_found(monkeypatch):
    lm = language_model("llama")
    assert fits(lm, START)
    go_on = lm.go_on
    monkeypatch.setattr(lm, "go_on", lambda ids, places, *rest: go_on(ids, 2 * places, *rest))
    assert not fits(lm, START)


def test_hold_back_touches_what_it_names():
    scores = torch.arange(28.0).reshape(4, 7)
    hold_back(
        scores, torch.tensor([1, 4]), torch.tensor([4, -1, -1, 0]), torch.tensor([-1, 2, 1, -1])
    )
    barred = torch.isinf(scores).nonzero().tolist()
    assert barred == [[0, 1], [1, 1], [1, 2], [1, 4], [2, 1], [2, 4], [3, 1], [3, 4]]
    assert scores[~torch.isinf(scores)].tolist() == [
        float(n) for n in range(28) if [n // 7, n % 7] not in barred
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.no_grad()
def test_recorded_steps_are_the_plain_ones(monkeypatch):
    model = tiny.tiny_model(max_position_embeddings=512).to("cuda", torch.bfloat16)
    lm = ChunkedCausalLM(tiny.tiny_restorable(model=model).model)
    drawn = []
    for recorder in (row_sampling.recorded, lambda step: None):
        monkeypatch.setattr(row_sampling, "recorded", recorder)
        guide = Recorder([200, 40, 90], steers=False)
        torch.manual_seed(0)
        draw_texts(lm, START, 3, 200, guide, lambda tokens: None)
        drawn.append(guide.texts)
    assert [len(text) for text in drawn[0]] == [len(text) for text in drawn[1]]
    for text in drawn[0]:  # random numbers of recorded and plain steps are not the same ones
        whole = torch.tensor([[*START, *text]], device="cuda")
        logs = lm.logits(lm.hidden(whole)[0, len(START) - 1 : -1]).log_softmax(-1)
        surprise = -logs.gather(1, whole[0, len(START) :, None]).mean()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        assert abs(surprise - entropy) < 0.6
