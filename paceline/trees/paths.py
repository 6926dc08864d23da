"""Rank paths: `"0 1 00"` is the best and the second-best successor, and the best successor of the best."""

from __future__ import annotations

from paceline.errors import BadRequest


def parse_paths(text: str, where: str, ranks: int = 10) -> list[str]:
    """The rank paths in a template, a digit a level.

    Args:
        text: paths separated by spaces or commas.
        where: the argument as the user wrote it, for messages, such as `recycling(template='0 00')`.
        ranks: how many ranks there are.

    Raises:
        BadRequest: no path, no digits, a rank too high, or a path without its parent.
    """
    paths = text.replace(",", " ").split()
    if not paths:
        raise BadRequest(f"{where}: at least one rank path is needed")
    for path in paths:
        if not (path.isascii() and path.isdigit()):
            raise BadRequest(f"{where}: {path!r} is no rank path; digits are needed")
        if int(max(path)) >= ranks:
            raise BadRequest(f"{where}: {path!r} has a rank above {ranks - 1}")
        if len(path) > 1 and path[:-1] not in paths:
            raise BadRequest(f"{where}: {path!r} lacks its parent {path[:-1]!r}")
    return paths


def parse_numbers(text: object, where: str) -> tuple[float, ...]:
    """The numbers in `"0.6, 0.2"` or `"2 2 1"` (a single number may come bare). Raises `BadRequest`."""
    try:
        numbers = tuple(float(word) for word in str(text).replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise BadRequest(f"{where}: numbers separated by spaces are needed, such as '2 2 1'")
    return numbers
