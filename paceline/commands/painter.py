"""Drafts in colour: which tokens were guessed rightly, which wrongly, and which the target added itself."""

from __future__ import annotations

from collections import deque
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from paceline.requests import Event
from paceline.text import Detokenizer

#: Most rejected tokens shown a step, and what stands between them: a tree rejects many alternatives.
REJECTED = {"chain": (8, ""), "tree": (3, "|")}
STYLES = {"accepted": "green", "bonus": "bold", "rejected": "dim red strike"}
#: Without colours, the notation of word diffs.
MARKS = {"accepted": ("{+", "+}"), "bonus": ("", ""), "rejected": ("[-", "-]")}


class Painter:
    """Prints a request's events; pass an instance as its callback.

    Args:
        tokenizer: the engine's.
        prompt: token ids before the text, for decoding in context.
        shape: what is drafted, a chain or a tree.
        console: where to; standard output by default.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], shape: str = "chain", console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._most, self._between = REJECTED[shape]
        self._tokenizer, self._detokenizer = tokenizer, Detokenizer(tokenizer, list(prompt))
        self._pieces: deque[tuple[str, str]] = deque()
        self._room = 0

    def legend(self) -> None:
        """Say what the colours mean."""
        line = Text("drafts: ")
        for kind in STYLES:
            line.append_text(self._styled(kind, kind)).append("  ")
        self.console.print(line.append("\n"))

    def __call__(self, event: Event) -> None:
        """Show what one step did."""
        for i, token in enumerate(event.tokens):
            if i == event.accepted:
                self._reject(event.rejected)
            self._pieces.append(("accepted" if i < event.accepted else "bonus", self._detokenizer.push(token)))
        if len(event.tokens) <= event.accepted:
            self._reject(event.rejected)
        # The event's text is what may be shown: a piece that may become part of a stop string waits.
        self._room += len(event.text)
        self._flush(final=event.finish_reason is not None)

    def _reject(self, tokens: tuple[int, ...]) -> None:
        words = [self._tokenizer.decode([token]).replace("\n", "⏎") for token in tokens[: self._most]]
        more = ["…"] if len(tokens) > self._most else []
        self._pieces.append(("rejected", self._between.join(words + more)))

    def _flush(self, final: bool) -> None:
        shown: list[tuple[str, str]] = []
        while self._pieces:
            kind, piece = self._pieces[0]
            if kind != "rejected":
                if len(piece) > self._room and not final:
                    break
                piece = piece[: self._room]
                self._room -= len(piece)
            self._pieces.popleft()
            shown.append((kind, piece))
        line = Text()
        for kind, run in groupby(shown, key=lambda part: part[0]):
            line.append_text(self._styled(kind, "".join(piece for _, piece in run)))
        self.console.print(line, end="", soft_wrap=True)

    def _styled(self, kind: str, text: str) -> Text:
        if not text or self.console.color_system is not None:
            return Text(text, STYLES[kind])
        before, after = MARKS[kind]
        return Text(f"{before}{text}{after}")
