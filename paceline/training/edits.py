"""Editing as training text: a function, a line that says what changes, and its second version.

Code editors' requests look like this, and a small model only learns to copy with changes where its text does so. The
form is that of the shipped `edit` workload; its functions are held out, so no training text holds them.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

#: Lines of a function that is edited, and the part of all functions that are.
SHORTEST, LONGEST, PART = 5, 60, 0.5
#: What a plain argument's hint may be.
HINTS = ("str", "int", "float", "bool", "list", "dict", "tuple", "bytes", "object", "Path", "Callable")
#: New names, most of them words that Python code uses for arguments and local variables.
# fmt: off
NAMES = (
    "amount", "axis", "batch", "block", "body", "bound", "buffer", "category", "chunk", "client", "code", "column",
    "config", "content", "count", "current", "data", "default", "depth", "destination", "element", "entry", "event",
    "field", "filename", "first", "flag", "folder", "group", "handler", "header", "height", "index", "info", "item",
    "items", "key", "kind", "label", "last", "layer", "length", "level", "limit", "line", "lines", "location",
    "mapping", "mask", "message", "method", "mode", "module", "name", "names", "node", "number", "offset", "option",
    "options", "order", "output", "owner", "parent", "part", "path", "pattern", "payload", "peer", "position",
    "prefix", "previous", "priority", "process", "query", "queue", "rate", "record", "reference", "region", "request",
    "response", "result", "root", "row", "sample", "scale", "section", "sender", "sequence", "session", "size",
    "source", "stage", "start", "state", "step", "stop", "stream", "suffix", "symbol", "table", "tag", "target",
    "task", "template", "text", "threshold", "timeout", "title", "token", "total", "tree", "unit", "value", "values",
    "vector", "version", "weight", "widget", "width", "window", "word", "worker",
)
# fmt: on

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Edit(NamedTuple):
    """A change of a function: how its heading says it, and the second version."""

    change: str
    after: str


def edit_documents(text: str) -> Iterator[str]:
    """Two versions of some functions of a Python file, the same ones every time; none if it cannot be parsed."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines, chance = text.splitlines(), random.Random(hashlib.sha256(text.encode()).digest())
    for function in _functions(tree):
        size = (function.end_lineno or 0) - function.lineno + 1
        if not SHORTEST <= size <= LONGEST or chance.random() >= PART:
            continue
        before = textwrap.dedent("\n".join(lines[function.lineno - 1 : function.end_lineno]))
        found = chance.choice((_renamed_argument, _renamed_argument, _renamed_local, _hinted))(function, before, chance)
        if found is not None and found.after != before:
            yield describe(function.name, before, found)


def describe(name: str, before: str, edit: Edit) -> str:
    """The document of an edit."""
    return heading(name, before, edit.change) + edit.after + "\n"


def heading(name: str, before: str, change: str) -> str:
    """The first version of a function, and the line above the second."""
    return f"# {name}, first version\n{before}\n\n\n# {name}, second version: {change}\n"


def _functions(tree: ast.Module) -> Iterator[Function]:
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else (node,):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                yield inner


def _arguments(function: Function) -> list[ast.arg]:
    given = function.args
    return [arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs) if arg.arg not in ("self", "cls")]


def _renamed_argument(function: Function, before: str, chance: random.Random) -> Edit | None:
    return _renamed([arg.arg for arg in _arguments(function)], before, chance)


def _renamed_local(function: Function, before: str, chance: random.Random) -> Edit | None:
    stored = (n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return _renamed(sorted(set(stored)), before, chance)


def _renamed(candidates: list[str], before: str, chance: random.Random) -> Edit | None:
    old = [name for name in candidates if len(name) > 1]
    words = set(re.findall(r"\w+", before))
    new = [name for name in NAMES if name not in words]
    if not old or not new:
        return None
    name, other = chance.choice(old), chance.choice(new)
    return Edit(f"`{name}` is called `{other}`", re.sub(rf"\b{name}\b", other, before))


def _hinted(function: Function, before: str, chance: random.Random) -> Edit | None:
    plain = [arg.arg for arg in _arguments(function) if arg.annotation is None]
    if not plain:
        return None
    name, hint = chance.choice(plain), chance.choice(HINTS)

    def annotated(found: re.Match[str]) -> str:
        return f"{found[1]}{name}: {hint}" + (" = " if found[2] == "=" else found[2])

    return Edit("with type hints", re.sub(rf"([(,]\s*){name}\s*([,)=])", annotated, before, count=1))
