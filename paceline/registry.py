"""The catalogue of methods: one `@method` a file, found by name, chosen by a spec string or a dataclass.

A method's class is a dataclass; its fields are its knobs, the options of its spec string and its documentation.
Modules of the method packages are imported on the first look-up, then entry points of the group
`paceline.methods` (each naming a module or a class) for methods that live in other distributions.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from paceline.errors import BadRequest
from paceline.specs import Spec, parse

#: Packages whose every module is imported by `load`.
PACKAGES = tuple(f"paceline.{kind}" for kind in ("policies", "drafters", "verifiers", "trees", "views", "controllers"))
#: What a user may write for a field of that type.
PLAIN = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
#: The largest integer that fits wherever integers go: counts, ids, tensors of 64 bits.
LARGEST = 2**63 - 1
T = TypeVar("T")


class Guarantee(Enum):
    """What a method promises about the output."""

    LOSSLESS = "lossless"  # exactly the policy's distribution
    GREEDY = "greedy"  # exactly the greedy text
    LOSSY = "lossy"  # changed, bounded by a named knob
    DEFINES = "defines"  # a policy: it defines the distribution the others keep


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method.

    Attributes:
        name: what a user writes.
        kind: `"policy"`, `"drafter"`, `"verifier"`, `"tree"`, `"view"` or `"controller"`.
        cls: the dataclass that implements it.
        guarantee: see `Guarantee`; for `LOSSY`, `knob` names the field that bounds the loss.
        needs: what it cannot do without, each a key of `paceline.plan.CAPABILITIES`.
        paper: title of the source, or a plain description of the folklore.
        year: of the paper.
        summary: one line.
        argument: for policies, the keyword of `generate(...)` that sets the first field.
    """

    name: str
    kind: str
    cls: type
    guarantee: Guarantee
    summary: str
    paper: str
    year: int
    needs: frozenset[str] = frozenset()
    knob: str | None = None
    argument: str | None = None


_methods: dict[tuple[str, str], Method] = {}
_loaded = False


def method(
    *,
    name: str,
    kind: str,
    guarantee: Guarantee,
    summary: str,
    paper: str,
    year: int,
    needs: frozenset[str] | set[str] = frozenset(),
    knob: str | None = None,
    argument: str | None = None,
) -> Callable[[type[T]], type[T]]:
    """Register a dataclass as a method. Raises `ValueError` on a taken name or a lossy method without a knob."""

    def register(cls: type[T]) -> type[T]:
        known = _methods.get((kind, name))
        # The same class may come again, when its module is loaded anew.
        if known is not None and _place(known.cls) != _place(cls):
            raise ValueError(f"{kind} {name!r} is registered by both {known.cls.__module__} and {cls.__module__}")
        if (guarantee is Guarantee.LOSSY) != (knob is not None):
            raise ValueError(f"{kind} {name!r}: lossy methods, and no others, name the knob that bounds the loss")
        _methods[kind, name] = Method(
            name, kind, cls, guarantee, summary, paper, year, frozenset(needs), knob, argument
        )
        return cls

    return register


def _place(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def load() -> None:
    """Import every method module once."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for package in PACKAGES:
        module = importlib.import_module(package)
        for info in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{info.name}")
    for entry in importlib.metadata.entry_points(group="paceline.methods"):
        entry.load()


def methods(kind: str | None = None) -> list[Method]:
    """All registered methods, or those of one kind, by kind and name."""
    load()
    return [m for key, m in sorted(_methods.items()) if kind in (None, key[0])]


def find(kind: str, name: str) -> Method:
    """The method of that name. Raises `BadRequest` that lists near misses."""
    load()
    if (kind, name) not in _methods:
        names = [m.name for m in methods(kind)]
        raise BadRequest(f"{kind} {suggest(name, names)}")
    return _methods[kind, name]


def build(kind: str, spec: object) -> Any:
    """A method's instance from a spec string such as `"draft(model=m, length=6)"`, a `Spec` or an instance.

    Args:
        kind: `"policy"`, `"drafter"`, `"verifier"`, `"tree"`, `"view"` or `"controller"`.
        spec: what the user gave.

    Raises:
        BadRequest: unknown name or option (near misses are listed), or a value a field refuses.
    """
    load()
    if isinstance(spec, str):
        spec = parse(spec)
    if not isinstance(spec, Spec):
        if any(isinstance(spec, m.cls) for m in methods(kind)):
            return spec
        raise BadRequest(f"{kind}: {spec!r:.80} is not allowed; a spec string or a {kind}'s instance is needed")
    found = find(kind, spec.name)
    return construct(found, _bind(found, spec, fields(found)))


def construct(found: Method, options: Mapping[str, object], argument: str | None = None) -> Any:
    """Instance of a method after checking each option's type.

    Args:
        found: the method.
        options: its knobs.
        argument: what the user calls the only option, if not by its name.

    Raises:
        BadRequest: the message names option and value.
    """
    hints = _hints(found.cls)
    for name, value in options.items():
        shown = str(value) if isinstance(value, Spec) else f"{value!r:.80}"
        where = f"{found.name}({name}={shown})" if argument is None else f"{argument}: {shown} is not allowed"
        if isinstance(value, int) and abs(value) > LARGEST:
            raise BadRequest(f"{where}; an integer beyond {LARGEST} fits nowhere")
        if (wanted := _wanted(value, hints[name])) is not None:
            raise BadRequest(f"{where}{':' if argument is None else ';'} {wanted} is needed")
    missing = [name for name in required(found) if name not in options]
    if missing:
        raise BadRequest(f"{found.kind} {found.name!r} needs {missing[0]}, as in {found.name}({missing[0]}=...)")
    try:
        return found.cls(**options)
    except TypeError as error:
        raise BadRequest(f"{found.kind} {found.name!r}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; to read them takes longer than to make an instance."""
    return typing.get_type_hints(cls)


def _bind(found: Method, spec: Spec, names: list[str]) -> dict[str, object]:
    if len(spec.positional) > len(names):
        known = ", ".join(names) or "none"
        raise BadRequest(f"{found.name}: {len(spec.positional)} values given; its options are {known}")
    options: dict[str, object] = dict(zip(names, spec.positional, strict=False))
    for name, value in spec.options.items():
        if name not in names:
            raise BadRequest(f"{found.name}: option {suggest(name, names)}")
        if name in options:
            raise BadRequest(f"{found.name}: option {name!r} is given twice, as {options[name]!r} and {value!r}")
        options[name] = value
    return options


def _wanted(value: object, hint: Any) -> str | None:
    """What a field of that type wants in place of a value; `None` if it may go in. Only plain scalars are judged."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if not set(choices) <= set(PLAIN) or hint is type(None):
        return None
    fits = bool in choices if isinstance(value, bool) else isinstance(value, choices)
    if fits or (isinstance(value, int) and not isinstance(value, bool) and float in choices):
        return None
    return " or ".join(PLAIN[choice] for choice in choices)


def suggest(name: str, names: Sequence[str]) -> str:
    """The rest of a message about an unknown name: near misses if there are any, and all known names."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    known = f"known: {', '.join(names) or 'none'}"
    if near:
        return f"{name!r} is unknown; did you mean {' or '.join(repr(n) for n in near)}? ({known})"
    return f"{name!r} is unknown; {known}"


def required(found: Method) -> list[str]:
    """Names of the knobs without a default."""
    empty = dataclasses.MISSING
    knobs = (f for f in dataclasses.fields(found.cls) if f.init)
    return [f.name for f in knobs if f.default is empty and f.default_factory is empty]


def fields(found: Method) -> list[str]:
    """Names of a method's knobs, in order."""
    return [f.name for f in dataclasses.fields(found.cls) if f.init]
