"""What a long command is doing."""

from __future__ import annotations

from rich.console import Console


class Progress:
    """One line on a terminal that says what is going on; a spinner's thread would disturb what is measured."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(text[: self.console.width - 1].ljust(self.console.width - 1), end="\r", style="dim")

    def close(self) -> None:
        """Leave an empty line."""
        self("")
