"""What is asked and what is answered."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from paceline.errors import BadRequest

#: Temperatures by which scores can be divided in float32 and still make a law.
COLDEST, HOTTEST = 1e-30, 1e30


@dataclass(frozen=True)
class Sampling:
    """How one request's text is chosen and when it ends.

    Attributes:
        max_new_tokens: most tokens to generate, at least 1.
        temperature: 0 is greedy; else from `COLDEST` to `HOTTEST`.
        policies: further policies, in order: spec strings or instances. `options` come first.
        options: policies by their argument name, such as `{"top_p": 0.9}`.
        stop: strings that end the text; the text is cut before them.
        stop_token_ids: further ids that end the text, beside the model's own.
        ignore_eos: go on after the model's own end tokens.
        seed: key of all randomness, 0 <= seed < 2**63.
        n: samples of the prompt.
        logprobs: `None`, or how many alternatives to report beside each token (0: the token's own alone).
        echo: put the prompt's text before the generated text (with its log-probabilities when asked for).
        prediction: the output that is expected, a string or token ids (the engine makes ids of it); the closer it is,
            the faster the output comes. It never changes the output.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    options: Mapping[str, object] = field(default_factory=dict)
    policies: tuple[object, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    prediction: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._integer("max_new_tokens", 1, None)
        self._integer("seed", 0, 2**63 - 1)
        self._integer("n", 1, None)
        if self.logprobs is not None:
            self._integer("logprobs", 0, 1000)
        check_temperature(self.temperature)
        for name in ("ignore_eos", "echo"):
            if not isinstance(getattr(self, name), bool):
                raise BadRequest(f"{name}: {getattr(self, name)!r} is not allowed; true or false is needed")
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.prediction is not None and not isinstance(self.prediction, str):
            object.__setattr__(self, "prediction", _ids("prediction", self.prediction))

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are wanted."""
        return self.echo and self.logprobs is not None

    def _integer(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        if not is_integer(value) or value < low or (high is not None and value > high):
            raise BadRequest(f"{name}: {value!r} is not allowed; {allowed} is needed")
        object.__setattr__(self, name, operator.index(value))


def is_integer(value: object) -> bool:
    """Whether it is an integer, of Python or NumPy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_temperature(value: object) -> None:
    """Refuse anything but 0 and a number between `COLDEST` and `HOTTEST`."""
    allowed = f"0 (greedy), or from {COLDEST:g} to {HOTTEST:g}, is allowed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"temperature: {value!r} is not a number; {allowed}")
    if value != 0 and not COLDEST <= value <= HOTTEST:
        raise BadRequest(f"temperature: {value} is out of range; {allowed}")


def _ids(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise BadRequest(f"{name}: {value!r:.80} is not a list of token ids")
    ids = tuple(value)
    if not all(is_integer(i) for i in ids):
        raise BadRequest(f"{name}: {value!r:.80} is not a list of token ids")
    return tuple(operator.index(i) for i in ids)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if value is None:
        value = ()
    if not isinstance(value, list | tuple) or not all(isinstance(s, str) for s in value):
        raise BadRequest(f"{name}: {value!r} is not allowed; a string or a list of strings is needed")
    if any(not s for s in value):
        raise BadRequest(f"{name}: an empty string would stop at once; give non-empty strings")
    return tuple(value)


@dataclass(eq=False)
class Request:
    """One prompt and what to do with it.

    Attributes:
        prompt: token ids, at least one, the model's opening behind them.
        sampling: see `Sampling`.
        drafter, verifier: built parts, or `None` for the engine's own.
        callback: called with every `Event` of this request; an exception in it ends this request alone.
        id: set by the engine.
    """

    prompt: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    drafter: Any = None
    verifier: Any = None
    callback: Callable[[Event], None] | None = None
    id: int = -1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities (natural) of one token.

    Attributes:
        token: its id.
        logprob: under the raw model.
        policy_logprob: under the policy it was chosen by (0 for a greedy choice).
        top: the most likely ids under the raw model, with their log-probabilities, best first.
        policy_top: the same under the policy.
    """

    token: int
    logprob: float
    policy_logprob: float
    top: tuple[tuple[int, float], ...] = ()
    policy_top: tuple[tuple[int, float], ...] = ()


@dataclass
class Stats:
    """Counts and seconds of one generated sequence, or of many added together.

    Attributes:
        forward_passes: target passes, the prompt's last chunk included, earlier prompt chunks not.
        tokens: generated tokens.
        drafted, accepted: draft tokens scored, and those kept.
        drafted_at, accepted_at: the same by depth (entry 0 is depth 1): a depth counts once a step in which
            something was drafted there, and as accepted when a node there was kept.
        prefill: seconds of reading the prompt; its last pass also gives the first token.
        draft, score, judge, keep, other: seconds of each phase; a batched step's time is shared evenly.
        cache_bytes: bytes of keys and values allocated when the sequence ended.
        histogram: steps by number of accepted draft tokens (entry j: steps that accepted exactly j).
    """

    forward_passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    histogram: list[int] = field(default_factory=list)
    prefill: float = 0.0
    draft: float = 0.0
    score: float = 0.0
    judge: float = 0.0
    keep: float = 0.0
    other: float = 0.0
    cache_bytes: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Mean tokens a target pass, bonus token included."""
        return self.tokens / self.forward_passes if self.forward_passes else 0.0

    @property
    def seconds(self) -> float:
        """All time spent on the sequence."""
        return self.prefill + self.draft + self.score + self.judge + self.keep + self.other

    @property
    def overhead(self) -> float:
        """Share of decoding time (prefill apart) outside the target's forward pass."""
        decoding = self.seconds - self.prefill
        return 1 - self.score / decoding if decoding else 0.0

    def record(self, drafted_depth: int, drafted: int, accepted: int, emitted: int) -> None:
        """Count one step."""
        self.forward_passes += 1
        self.tokens += emitted
        self.drafted += drafted
        self.accepted += accepted
        for counts, depth in ((self.drafted_at, drafted_depth), (self.accepted_at, accepted)):
            counts.extend([0] * (depth - len(counts)))
            for d in range(depth):
                counts[d] += 1
        self.histogram.extend([0] * (accepted + 1 - len(self.histogram)))
        self.histogram[accepted] += 1

    def add(self, other: Stats) -> None:
        """Add another sequence's counts and seconds to these."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if name == "cache_bytes":
                self.cache_bytes = max(mine, value)
            elif isinstance(value, list):
                mine.extend([0] * (len(value) - len(mine)))
                for i, count in enumerate(value):
                    mine[i] += count
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True)
class Event:
    """Something happened to a request.

    Attributes:
        request_id, index: which request and which of its samples.
        text: new text, safe to show (held back while it may be the start of a stop string).
        tokens: new token ids.
        accepted: how many of `tokens`, from the first, were drafted.
        rejected: drafted tokens of this step that were not kept.
        finish_reason: `None`, or `"stop"`, `"length"`, `"cancelled"`, `"error"`.
        logprobs: one entry a token when asked for.
        error: the exception that ended the request.
    """

    request_id: int
    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    accepted: int = 0
    rejected: tuple[int, ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    error: Exception | None = None


@dataclass
class Result:
    """A finished text.

    Attributes:
        text: generated text (after the prompt's, with `echo`), special tokens left out, cut before a stop string.
        tokens: generated ids, the end token included when one was chosen.
        finish_reason: `"stop"`, `"length"`, `"cancelled"` or `"error"`.
        stop_reason: the stop string or token id that ended the text, if one did.
        logprobs: one entry a generated token when asked for, else `None`.
        prompt_logprobs: with `echo` and `logprobs`: one entry a prompt token after the first.
        stats: see `Stats`.
        error: what ended the request, when `finish_reason` is `"error"`.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stats: Stats
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
