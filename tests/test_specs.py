"""Spec strings and the registry: what is read, what is written back, and how mistakes are answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline import registry
from paceline.errors import BadRequest
from paceline.policies.min_p import MinP
from paceline.policies.top_k import TopK
from paceline.registry import Guarantee, build, find, method, methods
from paceline.specs import Spec, parse

# -- spec strings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ngram", Spec("ngram")),
        ("ngram()", Spec("ngram")),
        (" ngram ( 3 , ) ", Spec("ngram", (3,))),
        ("min_p(0.05)", Spec("min_p", (0.05,))),
        ("a(-1, +2, .5, 1., 1e-3)", Spec("a", (-1, 2, 0.5, 1.0, 0.001))),
        ("a(True, none, x=FALSE)", Spec("a", (True, None), {"x": False})),
        ("a('true', \"5\", x='b c')", Spec("a", ("true", "5"), {"x": "b c"})),
        ("draft(model=a-b, tree=dyspec)", Spec("draft", (), {"model": "a-b", "tree": "dyspec"})),
        ("draft(model=org/m-7b, path=/a/b.c)", Spec("draft", (), {"model": "org/m-7b", "path": "/a/b.c"})),
        ("draft(7b-model, 1.5.2)", Spec("draft", ("7b-model", "1.5.2"))),
        ("a(b(c(1), d=2), e=f)", Spec("a", (Spec("b", (Spec("c", (1,)),), {"d": 2}),), {"e": "f"})),
    ],
)  # fmt: skip
def test_spec_strings_are_read(text: str, expected: Spec) -> None:
    assert parse(text) == expected
    assert type(parse(text)) is Spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a method's name is expected"),
        ("5", "a method's name is expected"),
        ("'ngram'", "a method's name is expected"),
        ("a(1", "')' is missing"),
        ("a(", "')' is missing"),
        ("a)", "nothing may follow 'a', got ')'"),
        ("a b", "nothing may follow 'a', got 'b'"),
        ("a(1)(2)", "nothing may follow 'a(1)', got '('"),
        ("a(1 2)", "',' or ')' is expected before '2'"),
        ("a(,)", "a value is missing"),
        ("a(b=)", "a value is missing"),
        ("a(b=", "a value is missing"),
        ("a(b=1, 2)", "the bare value 2 follows a named option; name it"),
        ("a(b=1, b=2)", "option 'b' is given twice"),
        ("a(b='x)", 'cannot read "\'x)"'),
    ],
)
def test_unreadable_specs_say_where(text: str, message: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse(text)
    assert message in str(refusal.value)
    assert repr(text) in str(refusal.value)


NAMES = st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(lambda n: n not in ("true", "false", "none"))
SCALARS = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_characters="'"), max_size=6),
    st.sampled_from(["true", "None", "5", "-1e3", "it's", "back\\slash x", "", " ", "a(b)=,", "/a/b-7b", "1.5.2"]),
)


def specs(values: st.SearchStrategy[object]) -> st.SearchStrategy[Spec]:
    positional = st.lists(values, max_size=3).map(tuple)
    return st.builds(Spec, NAMES, positional, st.dictionaries(NAMES, values, max_size=3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spec=specs(st.one_of(SCALARS, specs(SCALARS))))
@example(spec=Spec("a", (Spec("b"), "0\ud7fc", "-1x"), {"c": Spec("d")}))
def test_specs_survive_a_round_trip(spec: Spec) -> None:
    back = parse(str(spec))
    assert back == spec
    assert str(back) == str(spec)
    assert [type(v) for v in back.options.values()] == [type(v) for v in spec.options.values()]


# -- the registry -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knobs:
    """A method of every plain type."""

    count: int = 1
    share: float = 0.5
    flag: bool = False
    label: str | None = None
    items: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise BadRequest(f"count: {self.count} is out of range; at least 0")


def registered(cls: type, name: str = "knobs", **more: object) -> type:
    settings = {"guarantee": Guarantee.LOSSLESS, "summary": "A test.", "paper": "None", "year": 2020, **more}
    return method(name=name, kind="verifier", **settings)(cls)  # type: ignore[arg-type]


@pytest.fixture
def knobs() -> Iterator[type[Knobs]]:
    registry.load()
    before = dict(registry._methods)
    yield registered(Knobs)
    registry._methods.clear()
    registry._methods.update(before)


def test_a_method_is_built_from_all_kinds_of_specs(knobs: type[Knobs]) -> None:
    expected = Knobs(3, 2.0, True, "x y")
    assert build("verifier", "knobs(3, share=2, flag=true, label='x y')") == expected
    assert build("verifier", Spec("knobs", (3, 2.0, True), {"label": "x y"})) == expected
    assert build("verifier", expected) is expected
    assert registry.construct(find("verifier", "knobs"), {"items": (1, 2)}) == Knobs(items=(1, 2))
    assert build("verifier", "knobs") == Knobs()
    assert find("verifier", "knobs").cls is Knobs
    assert [m.name for m in methods("verifier")].count("knobs") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("knob", "verifier 'knob' is unknown; did you mean 'knobs'?"),
        ("zzzzzz", "verifier 'zzzzzz' is unknown; known: "),
        ("knobs(shore=1)", "knobs: option 'shore' is unknown; did you mean 'share'"),
        ("knobs(zzz=1)", "option 'zzz' is unknown; known: count, share, flag, label, items"),
        ("knobs(1, 2, true, a, b, c)", "6 values given; its options are count, share, flag, label, items"),
        ("knobs(1, count=2)", "knobs: option 'count' is given twice, as 1 and 2"),
        ("knobs(count=1.5)", "knobs(count=1.5): an integer is needed"),
        ("knobs(count=true)", "knobs(count=True): an integer is needed"),
        ("knobs(share=half)", "knobs(share='half'): a number is needed"),
        ("knobs(flag=1)", "knobs(flag=1): true or false is needed"),
        ("knobs(label=3)", "knobs(label=3): a text or none is needed"),
        ("knobs(share=nope(3))", "knobs(share=nope(3)): a number is needed"),
        ("knobs(count=9223372036854775808)", "an integer beyond 9223372036854775807 fits nowhere"),
        ("knobs(share=-1000000000000000000000)", "fits nowhere"),
        ("knobs(count=-1)", "count: -1 is out of range; at least 0"),
        ("knobs(", "')' is missing"),
        (TopK(3), "TopK(k=3) is not allowed; a spec string or a verifier's instance is needed"),
        (None, "verifier: None is not allowed"),
    ],
)
def test_mistakes_are_answered_by_name(knobs: type[Knobs], spec: object, message: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        build("verifier", spec)
    assert message in str(refusal.value)


def test_a_taken_name_is_refused(knobs: type[Knobs]) -> None:
    other = type("Other", (), {})
    with pytest.raises(ValueError, match=r"verifier 'knobs' is registered by both .*test_specs and .*test_specs"):
        registered(other)
    namesake = type("Knobs", (), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"registered by both .*test_specs and elsewhere"):
        registered(namesake)
    assert registered(Knobs) is Knobs  # its module loaded again
    method(name="knobs", kind="drafter", guarantee=Guarantee.LOSSLESS, summary="", paper="", year=0)(other)


def test_a_lossy_method_and_no_other_names_its_knob(knobs: type[Knobs]) -> None:
    with pytest.raises(ValueError, match="knob that bounds the loss"):
        registered(Knobs, "lossy", guarantee=Guarantee.LOSSY)
    with pytest.raises(ValueError, match="knob that bounds the loss"):
        registered(Knobs, "exact", knob="share")
    assert registered(Knobs, "lossy", guarantee=Guarantee.LOSSY, knob="share") is Knobs


def test_the_catalogue_is_complete_and_sorted() -> None:
    names = [m.name for m in methods("policy")]
    assert names == sorted(names)
    assert {"temperature", "top_k", "top_p", "min_p", "repetition", "banned"} <= set(names)
    assert {m.kind for m in methods()} >= {"policy", "drafter", "verifier"}
    assert build("policy", "min_p(0.05)") == MinP(0.05)
    arguments = [m.argument for m in methods("policy") if m.argument]
    assert len(arguments) == len(set(arguments))


def test_near_misses_of_policies_are_listed() -> None:
    with pytest.raises(BadRequest, match=r"policy 'topk' is unknown; did you mean 'top_k'"):
        build("policy", "topk(5)")
    with pytest.raises(BadRequest, match="top_p: 0 is out of range; 0 < top_p <= 1"):
        build("policy", "top_p(0)")
