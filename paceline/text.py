"""From token ids to text, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: What an incomplete character can be at most: three bytes, hence three tokens and three replacement characters
#: (some tokenizers show one for the character, others one a byte).
HELD = 3
#: A window of more tokens than the first is shortened to about the second.
WINDOW = (24, 8)


class Detokenizer:
    """Incremental decoding of one sequence, special tokens left out.

    A token may hold part of a character, and some tokenizers decode a token differently after others; so text
    is decoded in a window that starts a few tokens back, and what may be an incomplete character at its end
    is held.

    Args:
        tokenizer: `None` gives empty text (models driven by token ids alone).
        tokens: ids that come before, for context (the end of the prompt).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, tokens: list[int]) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._window = list(tokens[-WINDOW[1] :])
        before = self._decode(self._window)
        self._done = len(before)  # characters of the window's text that are part of `text` or of the prompt
        # A prompt of token ids may end inside a character. Once whole, it is the generated text's.
        self._unsure = before if _replaced(before) else ""
        self._pending = 0  # tokens since the text last ended in a whole character
        self._released = 0

    def push(self, token: int) -> str:
        """Take one token in; returns the text it completed (possibly empty)."""
        if self.tokenizer is None:
            return ""
        self._window.append(token)
        now = self._decode(self._window)
        held = _replaced(now)
        self._pending = self._pending + 1 if held else 0
        if self._pending > HELD:
            # Too many for an incomplete character: these bytes are no text, and only the last may become one.
            held = min(held, HELD)
        if self._unsure:
            certain = len(self._unsure) - min(_replaced(self._unsure), HELD)
            self._done = max(certain, _common(self._unsure, now))
        piece = self._take(now, len(now) - held)
        if piece:
            self._unsure = ""
        if len(self._window) > WINDOW[0] and not 0 < self._pending <= HELD:
            self._shorten(now)
        return piece

    def flush(self) -> str:
        """Text of tokens still held back, at the end."""
        now = self._decode(self._window)
        return self._take(now, len(now))

    def _take(self, now: str, end: int) -> str:
        """Add the window's text up to `end` to the text."""
        piece = now[self._done : end]
        self.text += piece
        self._done = max(self._done, end)
        return piece

    def _shorten(self, now: str) -> None:
        """Start the window later, at a token where a character starts: there its text ends as it did."""
        left = len(now) - self._done
        for start in range(len(self._window) - WINDOW[1], len(self._window) - WINDOW[1] - HELD - 1, -1):
            later = self._decode(self._window[start:])
            if now.endswith(later) and len(later) >= left:
                self._window, self._done, self._unsure = self._window[start:], len(later) - left, ""
                return

    def release(self, stops: tuple[str, ...], final: bool) -> str:
        """Text not shown yet that cannot become part of a stop string any more (all of it when `final`)."""
        safe = len(self.text)
        if not final:
            safe -= max((_overlap(self.text, stop) for stop in stops), default=0)
        piece = self.text[self._released : safe]
        self._released = max(self._released, safe)
        return piece

    def find(self, stops: tuple[str, ...], added: int) -> tuple[int, str] | None:
        """The earliest stop string that ends within the last `added` characters: its start, and itself."""
        best: tuple[int, str] | None = None
        for stop in stops:
            at = self.text.find(stop, max(0, len(self.text) - added - len(stop) + 1))
            if at >= 0 and (best is None or at < best[0]):
                best = (at, stop)
        return best

    def cut(self, length: int) -> None:
        """Shorten the text to its first `length` characters."""
        self.text = self.text[:length]

    def _decode(self, tokens: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


def _replaced(text: str) -> int:
    """Number of replacement characters at the end, where a character may be incomplete."""
    return len(text) - len(text.rstrip("\ufffd"))


def _common(a: str, b: str) -> int:
    """Length of the longest common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
