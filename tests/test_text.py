"""From ids to text: incremental text is the full text, whatever the tokens cut; stop strings; hold-back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paceline.text import WINDOW, Detokenizer

SENTENCES = [
    "The riders take turns at the front, and the line holds its pace.",
    "Ein schöner Weg über die Brücke, naïve façade, año nuevo.",
    "def pace(line):\n    return [rider for rider in line]\n",
    "日本語のテキストと emoji 😀 and 🚴 family 👩‍👩‍👧.",
]
END = "<|end|>"


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def _byte_fallback() -> PreTrainedTokenizerFast:
    """Words with a leading-space mark, and one token a byte for the rest, as SentencePiece models have."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁pace", "▁line", "s", "€"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


BYTE_LEVEL, BYTE_FALLBACK = _byte_level(), _byte_fallback()
SIZE = len(BYTE_LEVEL)
IDS = st.integers(0, SIZE - 1)
BYTE = {byte: BYTE_FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)}


def ids(text: str) -> list[int]:
    return list(BYTE_LEVEL(text)["input_ids"])


def byte_ids(text: bytes) -> list[int]:
    """One byte-level token a byte."""
    pieces = {ord_: piece for piece, ord_ in zip(*_byte_pieces(), strict=True)}
    return [BYTE_LEVEL.convert_tokens_to_ids(pieces[byte]) for byte in text]


def _byte_pieces() -> tuple[list[str], list[int]]:
    """The byte-level alphabet's characters, and the bytes they stand for (the table of GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))], visible + hidden


def decode(tokens: list[int]) -> str:
    return str(BYTE_LEVEL.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pushed(tokens: list[int], prompt: list[int] | None = None) -> list[str]:
    """The pieces of each token, and of the end."""
    text = Detokenizer(BYTE_LEVEL, prompt or [])
    pieces = [text.push(token) for token in tokens] + [text.flush()]
    assert "".join(pieces) == text.text
    return pieces


def behind(prompt: str, whole: str) -> str:
    """What the whole text adds to the prompt's; a character that the prompt has begun belongs to it."""
    at = 0
    while at < min(len(prompt), len(whole)) and prompt[at] == whole[at]:
        at += 1
    return whole[at:]


# -- incremental = full -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(prompt=st.lists(IDS, max_size=10), tokens=st.lists(IDS, max_size=3 * WINDOW[0]))
@example(prompt=[], tokens=byte_ids(b"\x9f" * 7 + "😀".encode()))
@example(prompt=byte_ids(b"a\xf0"), tokens=byte_ids(b"\x9f\x98\x80b"))
@example(prompt=[], tokens=byte_ids(b"\x80" * 60))
def test_any_tokens_give_the_text_of_all_at_once(prompt: list[int], tokens: list[int]) -> None:
    """Random byte-level tokens are mostly invalid UTF-8: the hardest case."""
    assert "".join(pushed(tokens, prompt)) == behind(decode(prompt), decode(prompt + tokens))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé😀👩‍ \n")), max_size=40))
def test_text_survives_cut_between_bytes(text: str) -> None:
    for tokens in (ids(text), byte_ids(text.encode())):
        assert "".join(pushed(tokens)) == text


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("repeats", [1, 12])
def test_sentences_come_whole(sentence: str, repeats: int) -> None:
    tokens = ids(sentence * repeats)
    for cut in (0, 1, len(tokens) // 2):
        text = "".join(pushed(tokens[cut:], tokens[:cut]))
        assert text == behind(decode(tokens[:cut]), sentence * repeats)


def test_an_emoji_is_held_until_whole() -> None:
    assert pushed(byte_ids("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]


def test_text_before_an_incomplete_character_is_not_held() -> None:
    assert pushed(byte_ids("é".encode()[:1]) + ids("line"))[0] == ""
    assert pushed([*ids("pace"), *byte_ids(b"\xf0\x9f")])[-1] == "\ufffd"


def test_invalid_bytes_are_shown_once_they_are_certain() -> None:
    pieces = pushed(byte_ids(b"\x80" * 5 + b"ok"))
    assert pieces == ["", "", "", "\ufffd", "\ufffd", "\ufffd" * 3 + "o", "k", ""]


def test_special_tokens_and_ids_beyond_the_tokenizer_have_no_text() -> None:
    end = BYTE_LEVEL.eos_token_id
    assert pushed([*ids("pace"), end, SIZE + 7, *ids(" line"), end])[-1] == ""
    assert "".join(pushed([*ids("pace"), end, SIZE + 7, *ids(" line"), end])) == "pace line"


def test_a_prompt_is_context_and_never_text() -> None:
    prompt = ids("The riders take turns at the front, and")
    text = Detokenizer(BYTE_LEVEL, prompt)
    assert text.text == ""
    assert text.flush() == ""
    assert "".join(pushed(ids(" the line"), prompt)) == " the line"


def test_without_a_tokenizer_there_is_no_text() -> None:
    text = Detokenizer(None, [1, 2])
    assert (text.push(3), text.flush(), text.release(("x",), final=True), text.text) == ("", "", "", "")


def test_leading_spaces_of_words_survive_every_window() -> None:
    """A decoder that strips the first space of what it is given must not lose those inside a text."""
    words = [BYTE_FALLBACK.convert_tokens_to_ids(w) for w in ("▁pace", "s", "▁line")] * WINDOW[0]
    text = Detokenizer(BYTE_FALLBACK, words[:3])
    for token in words:
        text.push(token)
    assert text.text == " paces line" * WINDOW[0]


def test_bytes_of_a_character_shown_one_by_one_are_held() -> None:
    """Byte fallback shows one replacement character for each byte of an incomplete character."""
    text = Detokenizer(BYTE_FALLBACK, [])
    euro = BYTE_FALLBACK.convert_tokens_to_ids("€")
    pieces = [text.push(token) for token in (euro, *(BYTE[b] for b in "😀".encode()), euro)]
    assert pieces == ["€", "", "", "", "😀", "€"]
    # While one character of a run of bytes is incomplete, this decoder shows the whole run as invalid.
    for run in ("é😀", "😀é" * 20, "日本語" * 30):
        text = Detokenizer(BYTE_FALLBACK, [euro])
        for byte in run.encode():
            text.push(BYTE[byte])
        assert text.text == run


# -- stop strings -----------------------------------------------------------------------------------------


def stopped(tokens: list[int], stops: tuple[str, ...]) -> tuple[str, list[str], str | None]:
    """Text, what was shown step by step, and the stop string, as a decoder goes about it."""
    text = Detokenizer(BYTE_LEVEL, [])
    shown = []
    for token in tokens:
        added = len(text.push(token))
        found = text.find(stops, added) if added else None
        if found is not None:
            text.cut(found[0])
            shown.append(text.release(stops, final=True))
            return text.text, shown, found[1]
        shown.append(text.release(stops, final=False))
    text.flush()
    shown.append(text.release(stops, final=True))
    return text.text, shown, None


LETTERS = st.text("abc", max_size=25)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(LETTERS, st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: list[str]) -> None:
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    first = min(ends, default=None)
    result, shown, cause = stopped(byte_ids(text.encode()), tuple(stops))
    assert "".join(shown) == result
    if first is None:
        assert (result, cause) == (text, None)
    else:
        complete = [stop for stop in stops if text[:first].endswith(stop)]
        assert cause in complete
        assert result == text[: first - max(map(len, complete))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LETTERS, st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stops: list[str], data: st.DataObject) -> None:
    """However the tokens cut the text, what is shown is the result, and no stop string is in it."""
    tokens: list[int] = []
    while text:
        size = data.draw(st.integers(1, 3))
        tokens, text = tokens + ids(text[:size]), text[size:]
    result, shown, _ = stopped(tokens, tuple(stops))
    assert "".join(shown) == result
    assert not any(stop in result for stop in stops)


def test_a_stop_string_may_straddle_tokens() -> None:
    tokens = [*ids("The riders"), *ids(" take turns"), *ids(" at")]
    assert len(ids("rs take t")) > 1
    assert stopped(tokens, ("rs take t",))[0] == "The ride"
    assert stopped(tokens, ("urns", "rs take t"))[2] == "rs take t"


def test_a_possible_start_of_a_stop_string_is_held_back() -> None:
    tokens = byte_ids(b"a<|b<|x|>c")
    result, shown, cause = stopped(tokens, ("<|x|>",))
    assert shown == ["a", "", "", "<|b", "", "", "", "", ""]
    assert (result, cause) == ("a<|b", "<|x|>")


def test_what_was_held_back_is_released_at_the_end() -> None:
    assert stopped(byte_ids(b"a<|"), ("<|x|>",)) == ("a<|", ["a", "", "", "<|"], None)
    assert stopped(byte_ids(b"a" + "😀".encode()[:2]), ("x",))[0] == "a\ufffd"


def test_a_stop_string_of_several_bytes_a_character() -> None:
    tokens = byte_ids("ok 😀 go".encode())
    assert stopped(tokens, ("😀",))[0] == "ok "
    assert stopped(tokens, ("😁",))[0] == "ok 😀 go"


def test_only_new_text_is_searched() -> None:
    text = Detokenizer(BYTE_LEVEL, [])
    for token in byte_ids(b"stop here"):
        text.push(token)
    assert text.find(("stop",), added=1) is None
    assert text.find(("stop",), added=6) == (0, "stop")
    assert text.find(("here", "e"), added=1) == (5, "here")
