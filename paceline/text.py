"""From token ids to text, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """Incremental decoding of one sequence, special tokens left out.

    A token may hold part of a character, and some tokenizers decode a token differently after others; so text is
    decoded in a window that starts a few tokens back, and held while it ends in an incomplete character.

    Args:
        tokenizer: `None` gives empty text (models driven by token ids alone).
        tokens: ids that come before, for context (the end of the prompt).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, tokens: list[int]) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._window = list(tokens[-6:])
        self._shown = len(self._window)  # tokens of the window whose text is part of `text` or of the prompt
        self._released = 0

    def push(self, token: int) -> str:
        """Take one token in; returns the text it completed (possibly empty)."""
        if self.tokenizer is None:
            return ""
        self._window.append(token)
        before, now = self._decode(self._window[: self._shown]), self._decode(self._window)
        if now.endswith("\ufffd") and len(self._window) - self._shown < 8:
            return ""
        piece = now[len(before) :]
        self.text += piece
        self._window = self._window[max(0, self._shown - 2) :]
        self._shown = len(self._window)
        return piece

    def flush(self) -> str:
        """Text of tokens still held back, at the end."""
        if self.tokenizer is None or self._shown == len(self._window):
            return ""
        piece = self._decode(self._window)[len(self._decode(self._window[: self._shown])) :]
        self.text += piece
        self._shown = len(self._window)
        return piece

    def release(self, stops: tuple[str, ...], final: bool) -> str:
        """Text not shown yet that cannot become part of a stop string any more (all of it when `final`)."""
        safe = len(self.text)
        if not final:
            safe -= max((_overlap(self.text, stop) for stop in stops), default=0)
        piece = self.text[self._released : safe]
        self._released = max(self._released, safe)
        return piece

    def find(self, stops: tuple[str, ...], added: int) -> tuple[int, str] | None:
        """The earliest stop string that ends within the last `added` characters: where it starts, and itself."""
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
        assert self.tokenizer is not None
        return str(
            self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
