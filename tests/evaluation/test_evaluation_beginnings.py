"""Every window and prompt begins with all that the tokenizer puts before a text, as training windows do."""

import pytest
import torch
from tokenizers import processors

import tiny
from linearard.data import Documents, beginning
from linearard.errors import DataError
from linearard.evaluation import EvaluationConfig
from linearard.evaluation.inputs import EvaluationInputs
from linearard.evaluation.perplexity import window_perplexity
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM

ALL_KINDS = EvaluationConfig(
    perplexity_windows=[41, 130],
    perplexity_tokens=300,
    agreement_window=40,
    generation_prompts=3,
    generation_prompt_tokens=21,
    passkey_lengths=[300],
    retrieval_lengths=[600],
    retrieval_repeats=1,
)


def putting(*front, behind=()):
    """One token a byte, with these special tokens around a text."""
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<g>", "<p>"]})
    ids = tokenizer.convert_tokens_to_ids
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*front, "$A", *behind], special_tokens=[(t, ids(t)) for t in {*front, *behind}]
    )
    return tokenizer, ids(list(front))


@pytest.mark.parametrize("front", [(), ("<s>",), ("<g>", "<p>"), ("<p>", "<s>")])
@pytest.mark.parametrize("behind", [(), ("</s>",)])
def test_what_a_tokenizer_puts_before_a_text(front, behind):
    tokenizer, ids = putting(*front, behind=behind)
    assert beginning(tokenizer) == ids


def test_a_tokenizer_that_changes_the_text():
    class Odd:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1, 2] if add_special_tokens else [3]}

    with pytest.raises(
        DataError, match=r"got Odd, to which 'a' is \[3\] without them and \[1, 2\]"
    ):
        beginning(Odd())


@pytest.mark.parametrize("front", [(), ("<s>",), ("<g>", "<p>")])
@pytest.mark.parametrize("given", [True, False], ids=["documents begin so", "documents do not"])
def test_everything_that_an_evaluation_reads(front, given):
    tokenizer, ids = putting(*front)
    text = torch.arange(3000) % 26 + 65
    text[::23] = 13  # full stops
    documents = [torch.cat([torch.tensor(ids if given else []).long(), text[n:]]) for n in (0, 997)]
    inputs = EvaluationInputs(tokenizer, documents, ALL_KINDS)
    windows = [
        *inputs.prepared["perplexity"].values(),
        inputs.agreement,
        inputs.prepared["generation"],
    ]
    assert [w.shape[1] for w in windows] == [41, 130, 40, 21]
    prompts = [
        *inputs.prepared["passkey"],
        *(p for made in inputs.prepared["retrieval"].values() for p in made),
    ]
    rows = [row.tolist() for found in windows for row in found]
    for row in rows + [prompt.continuation.ids for prompt in prompts]:
        assert row[: len(ids)] == ids and not set(row[len(ids) :]) & {256, 257, 258, 259}
    assert list(map(len, inputs.prepared["perplexity"].values())) == [
        7,
        2,
    ]  # the beginning is in the budget


def test_windows_are_those_of_the_text_behind_its_beginning():
    texts = [torch.arange(n) + 1000 * i for i, n in enumerate((401, 30, 977))]
    begun = [torch.cat([torch.tensor([7, 8]), text]) for text in texts]
    for window, tokens in ((9, 90), (41, 10**6)):
        plain = cut_windows(texts, window - 2, tokens // window * (window - 2))
        for documents in (begun, texts):
            cut = cut_windows(Documents(documents, [7, 8]), window, tokens)
            assert torch.equal(cut[:, 2:], plain) and (cut[:, :2] == torch.tensor([7, 8])).all()


def test_windows_shorter_than_the_beginning():
    for window in (1, 2):
        with pytest.raises(DataError, match="at least 1 tokens, with 2 before it"):
            cut_windows(Documents([torch.arange(9)], [7, 8]), window, 100)


def test_a_model_that_was_trained_with_a_beginning_breaks_without():
    """It learns one language behind the token and another one without it."""

    def language(step, count, length, seed):
        chance = torch.Generator().manual_seed(seed)
        noise = torch.randint(16, (count, length), generator=chance)
        regular = torch.rand(count, length, generator=chance) < 0.8
        return torch.where(regular, step, noise).cumsum(1) % 16

    begin = torch.tensor([256])
    model = tiny.tiny_model(num_hidden_layers=2, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(100):
        begun = torch.cat([begin.expand(8, 1), language(1, 8, 24, seed)], 1)
        batch = torch.cat([begun, language(5, 8, 25, seed)])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lm = ChunkedCausalLM(model.eval())
    documents = [torch.cat([begin, text]) for text in language(1, 4, 200, 99)]
    found = [
        window_perplexity(lm, cut_windows(texts, 25, 10**4), batch_size=16, seed=0)["ppl"]
        for texts in (Documents(documents, [256]), Documents(documents, [256]).texts)
    ]
    noise = 2.7  # perplexity of steps that are regular 8 times of 10
    assert found[0] < 1.5 * noise and found[1] > 3 * found[0]
