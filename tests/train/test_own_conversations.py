"""`data.self_chat`: the original writes both sides of conversations, in the frame of any chat template."""

import random

import pytest
import torch

import tiny
from linearard.data import DataConfig
from linearard.errors import DataError, RecipeError
from linearard.model import AdapterConfig, RestorableModel
from linearard.train.chat_template import chat_frame
from linearard.train.conversations import Conversation, ConversationWriter
from linearard.train.self_generated_text import SelfGeneratedBlocks
from linearard.train.text_generation import Assignment, write_documents

ADDED = ["<|im_start|>", "<|im_end|>", "<|bos|>", "<|date|>"]
_TURN = "{% for m in messages %}"
_HEADER = "<|im_start|>{{ m.role }}\n"
# What each kind of template writes: own wording of the ones in use.
TEMPLATES = {
    "header and end": _TURN + _HEADER + "{{ m.content }}<|im_end|>\n{% endfor %}",
    "a default system turn": "<|im_start|>system\nBe kind.<|im_end|>\n"
    + _TURN
    + _HEADER
    + "{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "begins with bos, ends turns without a line": "{{ bos_token }}"
    + _TURN
    + _HEADER
    + "\n{{ m.content }}<|im_end|>{% endfor %}",
    "brackets of plain letters, closed by eos": _TURN
    + "{% if m.role == 'user' %}[Q] {{ m.content }} [/Q] "
    + "{% else %}{{ m.content }} </s>{% endif %}{% endfor %}",
    "one plain letter, closed by eos": _TURN
    + "{{ m.content }}{{ '|' if m.role == 'user' else '</s>' }}{% endfor %}",
    "a date": "<|date|>{{ strftime_now('%d %b %Y') }}\n"
    + _TURN
    + _HEADER
    + "{{ m.content }}<|im_end|>{% endfor %}",
    "thoughts in the last answer": _TURN
    + _HEADER
    + "{% if loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}",
}


def chat_tokenizer(template, eos="<|im_end|>"):
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED, "eos_token": eos})
    tokenizer.chat_template = template
    return tokenizer


def chatting(tokenizer, **changes):
    torch.manual_seed(0)
    model = tiny.tiny_model(vocab_size=264, **changes)
    adapter = AdapterConfig(r=4, alpha=8.0, dropout=0.0)
    return RestorableModel(model, tokenizer, dict(tiny.LINEAR), adapter, name="tiny")


def rendered(tokenizer, turns):
    """What `transformers` makes of these turns, without what stands before every text."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return tokenizer.apply_chat_template(messages, tokenize=False).removeprefix("<s>")


@pytest.mark.parametrize(
    "kind", [kind for kind in TEMPLATES if kind not in ("a date", "thoughts in the last answer")]
)
@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_a_frame_writes_what_the_template_writes(kind, eos):
    tokenizer = chat_tokenizer(TEMPLATES[kind], eos)
    frame = chat_frame(tokenizer)
    for exchanges in (1, 2, 3):
        turns = [f"turn {number}, éx." for number in range(2 * exchanges)]
        whole = rendered(tokenizer, turns)
        # The end-of-text token that joins documents stands for the one of the template.
        assert frame.text(turns) in (whole, whole.rstrip("\n").removesuffix(eos))
    first = tokenizer.decode(frame.start)
    assert first.startswith("<s>") and first.count("<s>") == 1
    assert ("<s>" + rendered(tokenizer, ["x"])).startswith(first)


@pytest.mark.parametrize("kind", ["a date", "thoughts in the last answer"])
def test_what_changes_with_the_day_or_the_place(kind):
    frame = chat_frame(chat_tokenizer(TEMPLATES[kind]))
    text = frame.text(["a", "b", "c", "d"])
    assert "<think>" not in text and ("26 Jul 2024" in text) == (kind == "a date")


UNUSABLE = {
    "no template": (None, "got none"),
    "broken": ("{% for", "refuses them"),
    "raises": ("{{ raise_exception('only system') }}", "only system"),
    "leaves turns out": ("{{ messages[-1].content }}", "leaves turns out"),
    "repeats turns": (_TURN + "{{ m.content }}.{{ m.content }}|{% endfor %}", "repeats them"),
    "nothing between turns": (
        "<|im_start|>" + _TURN + "{{ m.content }} {% endfor %}",
        "nothing between",
    ),
    "numbers turns": (_TURN + "{{ loop.index }}{{ m.content }}|{% endfor %}", "between turns"),
    "begins otherwise": (
        "{{ messages | length }}" + _TURN + "{{ m.content }}|{% endfor %}",
        "begins with",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_templates_that_cannot_be_used(kind):
    template, says = UNUSABLE[kind]
    with pytest.raises(DataError, match=says) as caught:
        SelfGeneratedBlocks(DataConfig("self", self_chat=True), chat_tokenizer(template), 24, 1, 64)
    assert "data.self_chat" in str(caught.value)


def test_a_template_longer_than_the_window():
    tokenizer = chat_tokenizer("word " * 20 + TEMPLATES["header and end"])
    with pytest.raises(DataError, match=r"data\.self_chat: a beginning of 1 to 63 tokens"):
        SelfGeneratedBlocks(DataConfig("self", self_chat=True), tokenizer, 24, 1, 64)


def test_a_start_and_a_chat_are_two_things():
    with pytest.raises(RecipeError, match=r"data\.self_start to be absent beside self_chat"):
        DataConfig("self", self_start="a", self_chat=True)


class TestConversation:
    @pytest.fixture
    def frame(self):
        return chat_frame(chat_tokenizer(TEMPLATES["header and end"]))

    @staticmethod
    def held(frame, written, exchanges=2, room=1000):
        """A conversation that was given these ids wherever its template left it free."""
        talk, left = Conversation(frame, exchanges, room), iter(written)
        while not talk.done:
            token = talk.next if talk.next is not None else next(left, None)
            if token is None:
                break
            talk.write(token)
        return talk

    def test_turns_end_at_the_cue(self, frame):
        (end,) = frame.to_user.cue
        talk = self.held(frame, [65, 66, end, 67, end, 68, end, 69, 70, end])
        assert talk.turns == [[65, 66], [67], [68], [69, 70]] and talk.done

    @pytest.mark.parametrize(
        ("written", "room", "turns"),
        [
            ([65, -1, 66, -1, -1], 1000, [[65], [66], []]),  # a question without a word
            ([65, -1, 66, -1, 67, -1], 1000, [[65], [66], [67], []]),  # one without an answer
            ([65, -1, *[66] * 99], 40, [[65], [66] * (40 - 1 - 13)]),  # no room for more
            ([65, -1, *[66] * 999], 9999, [[65], [66] * 640]),  # a turn that never ends
        ],
    )
    def test_turns_that_do_not_end_or_hold_nothing(self, frame, written, room, turns):
        (end,) = frame.to_user.cue
        talk = self.held(frame, [end if token < 0 else token for token in written], room=room)
        assert len(frame.to_assistant.rest) == 12
        assert talk.turns == turns
        assert talk.text(lambda ids: "ab"[: len(ids)]).count("assistant") == 1

    def test_a_cue_of_letters(self):
        frame = chat_frame(chat_tokenizer(TEMPLATES["brackets of plain letters, closed by eos"]))
        cue = list(frame.to_assistant.cue)
        assert len(cue) == 4 and frame.to_assistant.rest == ()
        talk = self.held(frame, [65, *cue[:2], 66, *cue, 67, *frame.to_user.cue], exchanges=1)
        assert talk.turns == [[65, *cue[:2], 66], [67]] and talk.done

    def test_scores(self, frame):
        """A template's token is the only choice; a free turn has all but special tokens and its end."""
        writer = ConversationWriter(frame, 3, 1000, random.Random(0))
        start = torch.tensor([frame.start] * 3)
        (end,) = frame.to_assistant.cue
        writer.ended(torch.cat([start, torch.tensor([[65], [66], [67]])], 1))
        writer.ended(torch.cat([start, torch.tensor([[65, 65], [66, end], [67, 67]])], 1))
        scores = writer(start, torch.zeros(3, 264)).softmax(-1)
        assert scores[1].argmax() == frame.to_assistant.rest[0] and scores[1].max() == 1
        allowed = scores[0] > 0
        assert (
            allowed[end] and not allowed[[256, frame.start[1]]].any() and allowed.sum() == 264 - 5
        )
        fresh = ConversationWriter(frame, 1, 1000, random.Random(0))
        assert fresh(start, torch.zeros(1, 264)).softmax(-1)[0, end] == 0  # a turn has a word


@pytest.mark.parametrize("kind", ["a default system turn", "one plain letter, closed by eos"])
def test_the_original_writes_both_sides(kind):
    tokenizer = chat_tokenizer(TEMPLATES[kind], "</s>")
    frame = chat_frame(tokenizer)
    restorable = chatting(tokenizer, max_position_embeddings=200)
    assignment = Assignment(frame.start, tokenizer.eos_token_id, 600, 3, frame)
    texts = write_documents(restorable, assignment, progress=False)
    tiny.perturb_adapter(restorable)  # what was trained does not write
    assert write_documents(restorable, assignment, progress=False) == texts
    for text in texts:
        assert text.startswith(frame.head) and text.endswith(frame.tail)
        turns = text.count(frame.to_assistant.text)
        closed = text.count(frame.to_user.text)
        assert closed <= 3 and turns >= max(closed, 1)  # an answer may hold a plain letter, too
        if kind == "a default system turn":
            assert turns <= 3 and turns - closed in (0, 1)
            assert text.count("<|im_start|>") == 1 + 2 * turns


def test_blocks_of_conversations(tmp_path):
    """Cut and cached as other text that the original writes; other turns are another text."""
    tokenizer = chat_tokenizer(TEMPLATES["header and end"])
    restorable = chatting(tokenizer, max_position_embeddings=200)
    fingerprints = []
    for chat in (True, True, False):
        data = DataConfig("self", self_chat=chat, cache_dir=str(tmp_path))
        blocks = SelfGeneratedBlocks(data, tokenizer, 41, 7, 200)
        blocks.write(restorable, progress=False)
        fingerprints.append(blocks.fingerprint)
    assert len(list(tmp_path.glob("self-*.jsonl"))) == 2
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
