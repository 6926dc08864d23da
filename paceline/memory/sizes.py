"""Sizes as people write them."""

from __future__ import annotations

import re

from paceline.errors import BadRequest
from paceline.requests import is_integer

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def is_size(value: object) -> bool:
    """Whether it is a number of bytes, or a text that begins like one."""
    return is_integer(value) or (isinstance(value, str) and value.strip()[:1] in tuple("0123456789.-+"))


def in_bytes(what: str, value: object) -> int:
    """Bytes of a size such as `536870912`, `"512MiB"` or `"1.5 GB"`. Raises `BadRequest` that names `what`."""
    found = _SIZE.fullmatch(str(value)) if is_integer(value) or isinstance(value, str) else None
    unit = None if found is None else _UNITS.get(found[2].lower().removesuffix("b") + "b" if found[2] else "")
    if found is None or unit is None or (size := int(float(found[1]) * unit)) < 1:
        raise BadRequest(
            f"{what}: {value!r:.80} is not allowed; bytes, or a size such as 512MiB or 1.5GB, more than 0, are needed"
        )
    return size


def shown(size: float) -> str:
    """Bytes for people: `"61.2 MiB"`."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
