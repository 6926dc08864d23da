"""Token ids of files and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from paceline.errors import BadRequest

#: Files that are tokenized together, and the largest one that is read.
BATCH, LARGEST = 64, 1 << 24


def find_files(paths: Iterable[Path], pattern: str = "*") -> list[Path]:
    """The files given, and those of a name like `pattern` in the folders given and below; hidden ones are left out.

    Raises:
        BadRequest: a path does not exist, or nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (p for p in sorted(path.rglob(pattern)) if p.is_file())
            found += [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif path.is_file():
            found.append(path)
        else:
            raise BadRequest(f"datastore: {str(path)!r} does not exist")
    if not found:
        raise BadRequest(f"datastore: no files like {pattern!r} in {', '.join(map(str, paths))}")
    return found


def documents(files: Iterable[Path], tokenizer: Any, told: Callable[[Path], None]) -> Iterator[list[int]]:
    """The token ids of each text file; what is no UTF-8 text, or very large, is passed over.

    Args:
        files: to read.
        tokenizer: of transformers.
        told: called with each file when it is done.
    """
    batch: list[str] = []
    for file in files:
        if (text := _read(file)) is not None:
            batch.append(text)
        if len(batch) == BATCH:
            yield from tokenizer(batch, add_special_tokens=False)["input_ids"]
            batch = []
        told(file)
    if batch:
        yield from tokenizer(batch, add_special_tokens=False)["input_ids"]


def _read(file: Path) -> str | None:
    try:
        if file.stat().st_size > LARGEST:
            return None
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.strip() and "\0" not in text else None
