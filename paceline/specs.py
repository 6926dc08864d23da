"""Spec strings: `name`, `name(value)`, `name(option=value, other=inner(x=1))`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from paceline.errors import BadRequest

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*')
          |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w./\\-]))
          |(?P<word>[^\s()=,"']+)
          |(?P<mark>[()=,]))""",
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Spec:
    """A parsed spec string."""

    name: str
    positional: tuple[object, ...] = ()
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [_show(value) for value in self.positional]
        parts += [f"{name}={_show(value)}" for name, value in self.options.items()]
        return f"{self.name}({', '.join(parts)})" if parts else self.name


def _show(value: object) -> str:
    """A value as `parse` reads it back; a string is quoted where it would be read as something else."""
    if isinstance(value, Spec):
        text = str(value)
        return text if text.endswith(")") else f"{text}()"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)
    bare = _TOKEN.match(value)
    if bare is not None and bare["word"] == value and value.lower() not in _WORDS:
        return value
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"


def parse(text: str) -> Spec:
    """Parse a spec string. Raises `BadRequest` that points at the place it cannot read."""
    tokens = _tokenize(text)
    spec, end = _spec(text, tokens, 0)
    if end != len(tokens):
        raise BadRequest(f"spec {text!r}: nothing may follow {str(spec)!r}, got {tokens[end][1]!r}")
    return spec


def _tokenize(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise BadRequest(f"spec {text!r}: cannot read {stripped[at:]!r}")
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind]))
        at = match.end()
    return tokens


def _spec(text: str, tokens: list[tuple[str, str]], at: int) -> tuple[Spec, int]:
    if at >= len(tokens) or tokens[at][0] != "word":
        raise BadRequest(f"spec {text!r}: a method's name is expected, such as 'ngram' or 'draft(length=4)'")
    name = tokens[at][1]
    at += 1
    if at >= len(tokens) or tokens[at] != ("mark", "("):
        return Spec(name), at
    at += 1
    positional: list[object] = []
    options: dict[str, object] = {}
    while at < len(tokens) and tokens[at] != ("mark", ")"):
        key = None
        if tokens[at][0] == "word" and tokens[at + 1 : at + 2] == [("mark", "=")]:
            key = tokens[at][1]
            at += 2
        value, at = _value(text, tokens, at)
        if key is None and options:
            raise BadRequest(f"spec {text!r}: the bare value {value!r} follows a named option; name it")
        if key is None:
            positional.append(value)
        elif key in options:
            raise BadRequest(f"spec {text!r}: option {key!r} is given twice")
        else:
            options[key] = value
        if at < len(tokens) and tokens[at] == ("mark", ","):
            at += 1
        elif at < len(tokens) and tokens[at] != ("mark", ")"):
            raise BadRequest(f"spec {text!r}: ',' or ')' is expected before {tokens[at][1]!r}")
    if at >= len(tokens):
        raise BadRequest(f"spec {text!r}: ')' is missing")
    return Spec(name, tuple(positional), options), at + 1


def _value(text: str, tokens: list[tuple[str, str]], at: int) -> tuple[object, int]:
    if at >= len(tokens) or tokens[at][0] == "mark":
        raise BadRequest(f"spec {text!r}: a value is missing")
    kind, raw = tokens[at]
    if kind == "text":
        return raw[1:-1], at + 1
    if kind == "number":
        return (int(raw) if re.fullmatch(r"[-+]?\d+", raw) else float(raw)), at + 1
    if tokens[at + 1 : at + 2] == [("mark", "(")]:
        return _spec(text, tokens, at)
    return _WORDS.get(raw.lower(), raw), at + 1
