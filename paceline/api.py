"""What users import: `Engine`."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, overload
from weakref import WeakValueDictionary

from paceline import prompts, registry
from paceline.budgets import check_budget
from paceline.chance import SeededChance
from paceline.controllers import controller_of
from paceline.decoders import TreeDecoder
from paceline.drafters.base import Drafter
from paceline.drafters.prediction import Prediction
from paceline.errors import BadRequest, Unsupported
from paceline.models.loading import load_model, load_tokenizer
from paceline.plan import Plan, plan
from paceline.policies.base import Context, Pipeline
from paceline.requests import Event, Request, Result, Sampling
from paceline.sequence import Sequence
from paceline.settings import build_pipeline, settings_of
from paceline.specs import parse
from paceline.text import Detokenizer
from paceline.verifiers.base import Verifier


class Engine:
    """A model ready to generate, with a drafter and a verifier of its own and any other on request.

    Make one with `Engine.load`. All methods may be called from one thread at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        drafter: object = "ngram",
        verifier: object = "coupled",
        max_rows: int = 8,
        nodes: int | None = None,
        memory: object = None,
    ) -> None:
        """An engine around a loaded `CausalModel`.

        Args:
            model: see `paceline.models.load_model`.
            tokenizer: turns strings into ids and back; without one, prompts are ids and texts are empty.
            drafter, verifier: spec strings or instances, used where a request does not choose.
            max_rows: most sequences decoded at once.
            nodes: most drafted tokens a step and sequence, at most as many as the model's context has; by default
                6 `model.spare` + 1, which only drafters that know what a pass costs make use of.
            memory: a cap on what weights, caches and passes may take, such as `"512MiB"` or a number of bytes, or the
                spec of another controller (`paceline methods --kind controller`); by default there is none.
        """
        if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1:
            raise BadRequest(f"max_rows: {max_rows!r} is not allowed; an integer of at least 1 is needed")
        if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0):
            raise BadRequest(f"nodes: {nodes!r} is not allowed; an integer of at least 0 is needed")
        check_budget(f"nodes: {nodes}", nodes, model)
        self.model, self.tokenizer = model, tokenizer
        if tokenizer is not None:
            model.tokenizer = tokenizer
        most = _most(model) if nodes is None else nodes
        self.decoder = TreeDecoder(model, max_rows=max_rows, nodes=most, controller=controller_of(memory))
        self._parts: dict[tuple[str, str], Any] = {}
        self._leading: WeakValueDictionary[int, Prediction] = WeakValueDictionary()
        self._drafter = self._part("drafter", drafter)
        self._verifier = self._part("verifier", verifier)
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        model: Any,
        *,
        tokenizer: Any = None,
        drafter: object = "ngram",
        verifier: object = "coupled",
        dtype: Any = None,
        device: Any = None,
        fast: bool | None = None,
        max_rows: int = 8,
        nodes: int | None = None,
        memory: object = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        inflated: str | None = None,
        view: object = None,
    ) -> Engine:
        """Load a model and make an engine of it. See `load_model` for the model's arguments, `Engine` for the rest.

        Args:
            view: run only part of the model in every pass, which changes what it says: a spec such as
                `"unified(speedup=2)"` or an instance (`paceline methods --kind view`).
        """
        loaded = load_model(
            model,
            dtype=dtype,
            device=device,
            fast=fast,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            inflated=inflated,
        )
        if view is not None:
            loaded.follow(registry.build("view", view))
        text = load_tokenizer(model, tokenizer, trust_remote_code)
        return cls(loaded, text, drafter=drafter, verifier=verifier, max_rows=max_rows, nodes=nodes, memory=memory)

    # -- generating ---------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str | list[int], sampling: Sampling | None = None, **options: Any) -> Result: ...

    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], sampling: Sampling | None = None, **options: Any
    ) -> list[Result]: ...

    def generate(self, prompt: Any, sampling: Sampling | None = None, **options: Any) -> Any:
        """Generate to the end.

        Args:
            prompt: a string, a list of token ids, or a list of either (then a list of results is returned, `n` a
                prompt in order; a single prompt with `n > 1` also gives a list).
            sampling: settings; `options` override its fields.
            options: fields of `Sampling` (`max_new_tokens`, `temperature`, `stop`, `seed`, `prediction`, ...), policies
                by their argument (`top_p=0.9`), `policies=[...]`, and `drafter=`, `verifier=` for these prompts alone.

        Raises:
            BadRequest, Unsupported: before any model runs; the message names the argument.
            Exception: what ended a single prompt's generation. In a list of prompts, a failed one is a `Result`
                with `finish_reason == "error"` and its `error`, and harms no other.
        """
        given, single = prompts.listed(prompt)
        requests = [self.request(p, sampling, **options) for p in given]
        results = self._collect(requests)
        if single and results[0].error is not None:
            raise results[0].error
        return results[0] if single and len(results) == 1 else results

    def stream(self, prompt: str | list[int], sampling: Sampling | None = None, **options: Any) -> Iterator[Event]:
        """Generate one prompt step by step; arguments as in `generate`. Leaving the loop early cancels the rest.

        Raises:
            Exception: what ended the generation.
        """
        given, single = prompts.listed(prompt)
        if not single:
            raise BadRequest("prompt: stream takes one prompt; use generate for a list")
        request = self.request(given[0], sampling, **options)
        return self._stream(request)

    def request(
        self,
        prompt: str | list[int],
        sampling: Sampling | None = None,
        *,
        drafter: object = None,
        verifier: object = None,
        callback: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> Request:
        """A checked request, ready for `submit`. Arguments as in `generate`. Raises `BadRequest`, `Unsupported`."""
        settings, chosen, judge, _ = self._planned(sampling, options, drafter, verifier)
        if callback is not None and not callable(callback):
            raise BadRequest(f"callback: {callback!r:.80} is not allowed; a function that takes an event is needed")
        tokens = [*self._read(prompt, settings), *self.model.opening]
        most = min(len(tokens) + settings.max_new_tokens, self.model.limit(len(tokens)))
        self.decoder.controller.check(most, drawn=settings.temperature > 0)
        self._try_policies(tokens, settings)
        return Request(tokens, settings, chosen, judge, callback, next(self._ids))

    def submit(self, request: Request) -> list[Sequence]:
        """Queue a request's `n` sequences in the decoder (for servers; `generate` and `stream` call it).

        Raises:
            BadRequest: the request is being served already.
        """
        if any(s.request.id == request.id for s in (*self.decoder.waiting, *self.decoder.running)):
            raise BadRequest(f"request: {request.id} is being served already; make another one with request()")
        sequences = [self._sequence(request, i) for i in range(request.sampling.n)]
        for sequence in sequences:
            self.decoder.add(sequence)
        return sequences

    def explain(
        self, sampling: Sampling | None = None, *, drafter: object = None, verifier: object = None, **options: Any
    ) -> Plan:
        """The plan of a combination. Raises `BadRequest` or `Unsupported` with the sentence saying why not."""
        found = self._planned(sampling, options, drafter, verifier)[-1]
        return replace(found, lines=(*found.lines, *self.decoder.controller.lines()))

    def pipeline(self, sampling: Sampling) -> Pipeline:
        """The policy of some settings."""
        return build_pipeline(sampling)

    # -- internals ----------------------------------------------------------------------------------------

    def _planned(
        self, sampling: Sampling | None, options: Mapping[str, Any], drafter: object, verifier: object
    ) -> tuple[Sampling, Drafter, Verifier, Plan]:
        """What was asked for, and the parts that will do it, checked together."""
        settings = self._settled(settings_of(sampling, options))
        chosen = self._drafter_for(settings, drafter)
        judge = self._verifier if verifier is None else self._part("verifier", verifier)
        return settings, chosen, judge, plan(self.model, chosen, judge, self.pipeline(settings))

    def _part(self, kind: str, spec: object) -> Any:
        """A drafter or verifier; equal spec strings share one instance, its passes and what it learns."""
        if isinstance(spec, str):
            key = (kind, str(parse(spec)))
            if key not in self._parts:
                self._parts[key] = self._attached(registry.build(kind, spec))
            return self._parts[key]
        return self._attached(registry.build(kind, spec))

    def _drafter_for(self, settings: Sampling, spec: object) -> Drafter:
        """The drafter of a request: the one chosen, behind one that follows the prediction where there is one."""
        chosen = self._drafter if spec is None else self._part("drafter", spec)
        if settings.prediction is None or isinstance(chosen, Prediction):
            return chosen
        # Requests share it as they share the chosen drafter, which it keeps alive, so that the key stays unique.
        leading = self._leading.get(id(chosen))
        if leading is None:
            leading = self._leading[id(chosen)] = Prediction(fallback=chosen)
            leading.members[0].attach(self.model)
        return leading

    def _settled(self, settings: Sampling) -> Sampling:
        """The settings with the prediction as checked token ids."""
        if settings.prediction is None:
            return settings
        ids = prompts.encoded(settings.prediction, self.tokenizer, "prediction", add_special_tokens=False)
        return replace(settings, prediction=tuple(prompts.checked("prediction", ids, self.model.vocab_size)))

    def _attached(self, part: Any) -> Any:
        if isinstance(part, Verifier):
            part.attach(self.model)
        # A drafter may copy the weights or measure passes then, so it is told its target once.
        elif isinstance(part, Drafter) and (part.attached is None or part.attached() is not self.model):
            part.attach(self.model)
            self.decoder.controller.join(part)
            part.attached = weakref.ref(self.model)
        return part

    def _read(self, prompt: Any, settings: Sampling) -> list[int]:
        """A prompt's ids. Raises `BadRequest` or `Unsupported`: the model cannot read it, or not do what is asked."""
        longest = self.model.longest - len(self.model.opening)
        prompts.checked("stop_token_ids", settings.stop_token_ids, self.model.vocab_size)
        if settings.stop and self.tokenizer is None:
            raise BadRequest("stop: strings need a tokenizer and there is none; give stop_token_ids= or tokenizer=")
        given = prompts.checked("prompt", prompts.encoded(prompt, self.tokenizer), self.model.vocab_size)
        if not given:
            raise BadRequest("prompt: it is empty; give at least one token")
        if len(given) > longest:
            raise BadRequest(f"prompt: {len(given)} tokens exceed the context of {longest}; shorten the prompt")
        if settings.scores_prompt and "prompt_logprobs" in self.model.lacks:
            raise Unsupported(
                f"echo=True with logprobs asks for log-probabilities of the prompt, which {self.model.name} does not "
                f"offer: {self.model.lacks['prompt_logprobs']}; leave one of them out"
            )
        return given

    def _try_policies(self, prompt: list[int], settings: Sampling) -> None:
        """What policies refuse once they know the vocabulary is refused before any model runs."""
        seen = tuple(prompt[self.model.encoded(len(prompt)) :])
        try:
            self.pipeline(settings).start(Context(seen, self.model.vocab_size, frozenset(), self.model.device))
        except BadRequest:
            raise
        except Exception:  # a fault of the policy: it ends its own sequence when that starts, and harms no other
            return

    def _sequence(self, request: Request, index: int) -> Sequence:
        sampling = request.sampling
        own = frozenset() if sampling.ignore_eos else self.model.end_tokens
        ends = frozenset(sampling.stop_token_ids) | own
        source = self.model.encoded(len(request.prompt))
        return Sequence(
            request=request,
            index=index,
            tokens=list(request.prompt),
            prompt_length=len(request.prompt),
            pipeline=self.pipeline(sampling),
            chance=SeededChance(sampling.seed, index),
            drafter=request.drafter,
            verifier=request.verifier,
            detokenizer=Detokenizer(self.tokenizer, request.prompt[source:]),
            end_tokens=ends,
            source=source,
        )

    def _collect(self, requests: list[Request]) -> list[Result]:
        sequences = [s for request in requests for s in self.submit(request)]
        try:
            while any(s.finish_reason is None for s in sequences):
                self.decoder.step()
        except BaseException:
            for request in requests:
                self.decoder.cancel(request.id)
            raise
        return [self.result(s) for s in sequences]

    def _stream(self, request: Request) -> Iterator[Event]:
        # Between two events of this stream other calls may step the decoder; the callback misses nothing.
        events: deque[Event] = deque()
        own = request.callback

        def collect(event: Event) -> None:
            events.append(event)
            if own is not None:
                own(event)

        request.callback = collect
        sequences = self.submit(request)
        try:
            while events or any(s.finish_reason is None for s in sequences):
                if not events:
                    self.decoder.step()
                    continue
                event = events.popleft()
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            self.decoder.cancel(request.id)

    def result(self, sequence: Sequence) -> Result:
        """The result of a finished sequence."""
        request, sampling = sequence.request, sequence.request.sampling
        text = sequence.detokenizer.text
        if sampling.echo and self.tokenizer is not None:
            text = self.tokenizer.decode(request.prompt, skip_special_tokens=True) + text
        return Result(
            text=text,
            tokens=sequence.tokens[sequence.prompt_length :],
            finish_reason=sequence.finish_reason or "cancelled",
            stats=sequence.stats,
            stop_reason=sequence.stop_reason,
            logprobs=sequence.logprobs if sampling.logprobs is not None else None,
            prompt_logprobs=sequence.prompt_logprobs if sampling.scores_prompt else None,
            error=sequence.error,
            prompt_tokens=len(request.prompt),
        )


def _most(model: Any) -> int:
    """Most drafted tokens by default: none for a model to which each costs a pass."""
    return 6 * model.spare + 1 if model.spare else 0
