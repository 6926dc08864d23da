"""SpecMemo: speculative decoding under a cap on memory.

A step that scores n drafted nodes behind texts of lengths L needs

    weights + keys and values of max(L) + n + 1 slots a text, of the target and of models that draft + room of the pass

bytes (see `paceline.memory.footprint`, which measures each on the models at hand). Given the cap, the largest n that
fits is solved for before every step, so drafts shrink as texts grow. Where not even `least` nodes fit, the longest text
gives up its draft's cache and goes on without drafts. A text begins when all that run could be finished without drafts
beside it, and waits until then; one that alone would not fit is refused before any model runs. So nothing is evicted,
and no text fails on its way. The output's law is untouched: only the size of drafts, the start of texts and the number
of prompt tokens a pass change.

Nothing is wasted on rejected drafts: a row's nodes lie in slots behind its text, accepted ones are moved to the front
and the slots are used again. Storage grows `chunk` slots at a time, a row at a time and tensor by tensor, instead of
doubling, and what freed rows leave is given back.

The cap is on tensors: weights as they are laid out, tables of drafters, keys and values, and what a pass needs. Python,
its libraries, files mapped into memory and drafters' dictionaries are not in it. The paper's own constants, and its
table of how candidates are pruned, are not known to the authors of this file.

Paper: "SpecMemo: Speculative Decoding is in Your Pocket", 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

from paceline.caches import TrieCache
from paceline.chance import REMEMBERED
from paceline.controllers.base import Controller
from paceline.drafters.base import Drafter
from paceline.errors import BadRequest
from paceline.memory.footprint import Footprint, measure
from paceline.memory.held import held
from paceline.memory.sizes import in_bytes, shown
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence

#: Prompt tokens a pass that a text must be able to read before it may begin.
READ = 32


@dataclass(frozen=True)
class Text:
    """One text as far as memory is concerned.

    Attributes:
        length: its tokens, prompt and output.
        read: how many of them the next pass reads without scoring them.
        noise: positions whose noise is remembered, where its tokens are drawn; 0: none are.
        drafts: which second models keep it too, by their place among `SpecMemo`'s readers.
        begins: whether these have yet to read it.
    """

    length: int
    read: int = 0
    noise: int = 0
    drafts: tuple[int, ...] = ()
    begins: bool = False


@dataclass(frozen=True)
class Reader:
    """A model that reads texts, the target or one that drafts, and the cache of its texts."""

    model: Any
    cache: TrieCache
    footprint: Footprint


@method(
    name="specmemo",
    kind="controller",
    guarantee=Guarantee.LOSSLESS,
    summary="Drafts shrink, and texts wait, so that memory stays below a cap.",
    paper="SpecMemo: Speculative Decoding is in Your Pocket",
    year=2025,
)
@dataclass(eq=False)
class SpecMemo(Controller):
    """A plan of memory.

    Attributes:
        cap: most bytes, a number or a size such as `512MiB`.
        chunk: slots by which a text's keys and values grow, rounded up to a multiple of 128.
        least: smallest draft that is worth its passes; where fewer nodes fit, a text gives up drafting.

    `weights` says how many bytes weights and tables take, once it is attached.
    """

    cap: int | str
    chunk: int = 128
    least: int = 1

    def __post_init__(self) -> None:
        self._cap = in_bytes("memory", self.cap)
        if self.chunk < 1 or self.least < 1:
            wrong = f"chunk={self.chunk}" if self.chunk < 1 else f"least={self.least}"
            raise BadRequest(f"specmemo({wrong}): an integer of at least 1 is needed")
        self.weights = 0
        self._parts: list[object] = []
        self._readers: list[Reader] = []
        self._together = False

    # -- what there is ------------------------------------------------------------------------------------

    def attach(self, model: Any, cache: TrieCache) -> None:
        self._add([model], [(model, cache)])

    def join(self, drafter: Drafter) -> None:
        known = [id(reader.cache) for reader in self._readers]
        self._together |= drafter.overlaps
        self._add([drafter], [pair for pair in drafter.second if id(pair[1]) not in known])

    def _add(self, parts: Seq[object], pairs: Seq[tuple[Any, TrieCache]]) -> None:
        before = self.weights, self._parts, self._readers
        self._parts, self._readers = [*self._parts, *parts], [*self._readers, *map(_reader, pairs)]
        self.weights = held(*self._parts)
        for _, cache in pairs:
            cache.spare(self.chunk)
        if (need := self.needed([Text(1)], 0)) > self._cap:
            weights, short = self.weights, need - self._cap
            self.weights, self._parts, self._readers = before
            raise BadRequest(
                f"memory: {shown(self._cap)} is {shown(short)} too little: weights and tables take {shown(weights)}, "
                f"a text of one token {shown(need - weights)} more"
            )

    # -- what fits ----------------------------------------------------------------------------------------

    def needed(self, texts: Seq[Text], nodes: int) -> float:
        """Bytes of the next step, if each of some texts drafts so many nodes."""
        longest = max((text.length for text in texts), default=0) + nodes
        kept, rooms = 0.0, [0.0]
        for i, reader in enumerate(self._readers):
            own = [text for text in texts if i == 0 or i in text.drafts]
            if not own:
                continue
            slots, found = reader.cache.slots(longest), reader.footprint
            kept += len(own) * slots * found.slot
            read = [text.read if i == 0 else text.read * text.begins for text in own]
            rows = sum(read) if reader.model.ragged else len(own) * max(read)
            drawn = any(text.noise for text in own)
            # Storage that grows, before the pass, has one tensor twice for a moment.
            grows = slots > reader.cache.capacity or len(own) > reader.cache.rows
            growth = len(own) * slots * found.tensor * grows
            rooms.append(max(growth, found.room(len(own) * (nodes + 1), rows, slots, len(own), drawn)))
        return self.weights + kept + (sum(rooms) if self._together else max(rooms)) + self._drawn(texts, nodes)

    def alone(self, tokens: int, drawn: bool = True) -> float:
        """Bytes of a text of so many tokens that is decoded alone, without drafts."""
        return self.needed([Text(tokens, min(READ, tokens - 1), (REMEMBERED + 1) * drawn)], 0)

    def _drawn(self, texts: Seq[Text], nodes: int) -> float:
        """Bytes of the noise of positions, and of the laws of drafted tokens."""
        row = 4.0 * self._readers[0].model.vocab_size
        drawn = [text for text in texts if text.noise]
        return row * sum(text.noise + nodes + 2 * nodes * bool(text.drafts) for text in drawn)

    def check(self, tokens: int, drawn: bool) -> None:
        if (short := self.alone(tokens, drawn) - self._cap) > 0:
            most = _largest(lambda n: self.alone(n, drawn) <= self._cap, tokens)
            raise BadRequest(
                f"memory: a text of {tokens} tokens, prompt and max_new_tokens, needs {shown(short)} more than the cap "
                f"of {shown(self._cap)}; at most {most} tokens fit"
            )

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        texts = [Text(self._end(s), READ if s is sequence else 0, _noise(s, REMEMBERED)) for s in (*running, sequence)]
        return not running or self.needed(texts, 0) <= self._cap

    def prefill_chunk(self, sequences: Seq[Sequence], most: int) -> int:
        texts = [self._text(s) for s in sequences]
        scored = sequences[-1].request.sampling.scores_prompt

        def fits(tokens: int) -> bool:
            if scored:
                return self._fits([replace(text, noise=text.noise or 1) for text in texts], tokens)
            return self._fits([*texts[:-1], replace(texts[-1], read=tokens)], 0)

        found = _largest(fits, most) or 1
        _read_by(found, sequences[-1].drafter)
        return found

    def retired(self, sequences: Seq[Sequence]) -> list[Sequence]:
        texts, retired = {s: replace(self._text(s), read=0) for s in sequences}, []
        while texts and not self._fits(list(texts.values()), self.least):
            drafting = [s for s, text in texts.items() if text.drafts]
            if not drafting:
                break
            retired.append(max(drafting, key=lambda s: texts[s].length))
            texts[retired[-1]] = replace(texts[retired[-1]], drafts=(), begins=False)
        return retired

    def nodes(self, sequences: Seq[Sequence], most: int) -> int:
        texts = [self._text(s) for s in sequences]
        found = _largest(lambda n: self._fits(texts, n), most)
        return found if found >= min(self.least, most) else 0

    def lines(self) -> list[str]:
        limit = self._readers[0].model.context
        alone = _largest(lambda n: self.alone(n) <= self._cap, limit)
        drafts = tuple(range(1, len(self._readers)))
        drafted = _largest(lambda n: self._fits([Text(n, drafts=drafts)], self.least), limit)
        return [
            f"memory    at most {shown(self._cap)}, of which weights and tables take {shown(self.weights)}: "
            f"texts of up to {alone} tokens, drafts up to {drafted} tokens"
        ]

    # -- texts --------------------------------------------------------------------------------------------

    def _fits(self, texts: Seq[Text], nodes: int) -> bool:
        return self.needed(texts, nodes) <= self._cap

    def _text(self, sequence: Sequence) -> Text:
        length, second = len(sequence.tokens), [id(cache) for _, cache in sequence.drafter.second]
        drafts = tuple(i for i, reader in enumerate(self._readers) if i and id(reader.cache) in second)
        noise = _noise(sequence, min(REMEMBERED, sequence.generated))
        return Text(length, max(0, sequence.uncached - 1), noise, drafts, not sequence.generated)

    def _end(self, sequence: Sequence) -> int:
        """Tokens that the text may come to have."""
        wanted = sequence.prompt_length + sequence.request.sampling.max_new_tokens
        return int(min(wanted, self._readers[0].model.limit(sequence.prompt_length)))


def _read_by(chunk: int, drafter: Drafter) -> None:
    drafter.prefill_chunk = chunk
    for member in drafter.members:
        _read_by(chunk, member)


def _reader(pair: tuple[Any, TrieCache]) -> Reader:
    model, cache = pair
    return Reader(model, cache, measure(model))


def _noise(sequence: Sequence, behind: int) -> int:
    return 0 if sequence.pipeline.greedy else behind + 1


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n from 0 to `most` that fits, where all below one that fits do; 0 also where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
