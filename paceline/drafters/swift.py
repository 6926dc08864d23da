"""SWIFT: the target drafts with some of its sub-blocks left out, and finds out on the fly which.

A sub-block is one layer's attention or its MLP; the first and the last layer always run. A draft skips the best set
found so far and ends with the first token whose probability is below `confidence`. It reads the target's keys and
values and adds its own behind them, in the layers whose attention it runs.

The search goes on beside generation, one set a step. A set is a vector over the 2 (L - 2) sub-blocks with exactly
floor(2 (L - 2) skip) ones, drawn at random; every 25th is the one of many random ones with the highest upper
confidence bound `mean + kappa std` under a Gaussian process (Matern 5/2) through all scores so far. The score of a set
is the share of the first `window` generated tokens whose successor the skipping model predicts, in one pass over a copy
of the prompt's keys and values. The set of every second layer comes first; a better one replaces the best. The search
ends above `max_score`, after `patience` sets without gain, or after `tries` in all. Its passes are part of the drafting
time in the statistics.

Which sub-blocks a text can do without depends on what kind of text it is. So there is a search for every context, and
what it has found stays for later requests of that context; a new one starts from the set of the one most like it. A
request's context is told by its prompt (`paceline.drafters.contexts`); of `contexts` kept the one unused for longest is
forgotten. Texts of different contexts draft side by side, each with its own set.

A draft is a chain. With `siblings` it is a tree: at every depth the chain's token, of probability p under the draft,
gets siblings until there are 3, 5, 8 or 10 candidates for p above 0.95, above 0.8, above 0.5 or below (1, 3, 5 or 10
where text is sampled). Under the budget of a step the chain comes first, then the siblings that promise most. The paper
takes the most likely ones; here they follow the law that drafter and verifier agreed on, as those of every tree do, and
nothing but what was already drawn decides how many there are, so the output's law is kept.

Paper: Xia et al., "SWIFT: On-the-Fly Self-Speculative Decoding for LLM Inference Acceleration", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from paceline.budgets import check_budgets
from paceline.caches import Row, TrieCache
from paceline.drafters.base import Outcome
from paceline.drafters.chain import CHAIN_LAWS, Run
from paceline.drafters.contexts import Contexts
from paceline.drafters.selfdraft import SelfDraft, check_knobs
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.models.views import Skip, require_views
from paceline.registry import Guarantee, method
from paceline.sequence import Sequence
from paceline.tree import TokenTree
from paceline.trees.growth import Growth

#: Every so many sets one is chosen by the Gaussian process, the best of so many random ones.
EVERY, CANDIDATES = 25, 256
#: Variance of a score that does not come from the set, relative to that which does.
_NOISE = 1e-2
#: Candidates at a depth, greedily and where text is sampled, by the chain's token's probability: above the first entry.
WIDTHS = ((0.95, 3, 1), (0.8, 5, 3), (0.5, 8, 5), (0.0, 10, 10))
#: What siblings can follow. To draw one of them twice would waste its place; and how many there will be, which "top"
#: asks for, is not known when the first is drawn.
TREE_LAWS = frozenset({"shared", "distinct", "fixed"})


class Search:
    """Which sub-blocks to skip, from the scores of those tried.

    Args:
        layers: L, at least 4.
        ratio: share of the sub-blocks between the first and the last layer that is skipped.
        kappa: weight of uncertainty in the upper confidence bound.
        first: the set to begin with; by default every second layer.

    Attributes:
        best, score: the best set so far (`[2 (L - 2)]` bool: attention of layers 1 to L - 2, then their MLPs) and its
            score, -1 before the first.
        tried, stale: sets scored in all, and since the best one.
    """

    def __init__(self, layers: int, ratio: float, kappa: float, first: np.ndarray | None = None) -> None:
        self.inner, self.kappa = layers - 2, kappa
        self.count = math.floor(2 * self.inner * ratio)
        self.best = np.tile(np.arange(self.inner) % 2 == 0, 2) if first is None else first
        self.score = -1.0
        self.tried = self.stale = 0
        self._random = np.random.default_rng(0)
        self._sets: list[np.ndarray] = []
        self._scores: list[float] = []

    def propose(self) -> np.ndarray:
        """The next set to score."""
        if not self.tried:
            return self.best
        if self.tried % EVERY:
            return self._draw()
        candidates = np.stack([self._draw() for _ in range(CANDIDATES)])
        mean, deviation = self.posterior(candidates)
        chosen: np.ndarray = candidates[np.argmax(mean + self.kappa * deviation)]
        return chosen

    def report(self, skipped: np.ndarray, score: float) -> None:
        """The score of a set."""
        self._sets.append(skipped)
        self._scores.append(score)
        self.tried, self.stale = self.tried + 1, self.stale + 1
        if score > self.score:
            self.best, self.score, self.stale = skipped, score, 0

    def view(self, skipped: np.ndarray) -> Skip:
        """The view that leaves a set out."""
        layers = [1 + np.flatnonzero(part) for part in np.split(skipped, 2)]
        return Skip(*(frozenset(part.tolist()) for part in layers))

    def posterior(self, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation `[n]` of the scores of sets `[n, 2 (L - 2)]`."""
        known, scores = np.stack(self._sets), np.array(self._scores)
        middle, spread = scores.mean(), scores.std() + 1e-6
        factor = np.linalg.cholesky(self._kernel(known, known) + _NOISE * np.eye(len(known)))
        across = np.linalg.solve(factor, self._kernel(known, sets))
        mean = across.T @ np.linalg.solve(factor, (scores - middle) / spread)
        deviation = np.sqrt(np.maximum(1 - (across**2).sum(0), 0))
        return middle + spread * mean, spread * deviation

    def _draw(self) -> np.ndarray:
        skipped = np.zeros(2 * self.inner, bool)
        skipped[self._random.permutation(len(skipped))[: self.count]] = True
        return skipped

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Matern 5/2 of the number of sub-blocks in which sets differ; random sets are about one length apart."""
        apart = (a[:, None] != b[None]).sum(-1) / max(self.count, 1)
        r = np.sqrt(5 * apart)
        kernel: np.ndarray = (1 + r + r**2 / 3) * np.exp(-r)
        return kernel


@dataclass(eq=False)
class Bench:
    """Where sets are scored: a copy of one sequence's prompt, as the whole model read it."""

    sequence: Sequence
    cache: TrieCache
    row: Row


@dataclass(eq=False)
class Found:
    """What is known of one context.

    Attributes:
        search: which sub-blocks its texts can do without, and `skipped` the best set so far.
        bench: where the next set is scored, while one of its texts is there to score it on.
    """

    search: Search
    skipped: Skip = field(init=False)
    bench: Bench | None = None

    def __post_init__(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Draft with the best set from now on."""
        self.skipped = self.search.view(self.search.best)


@dataclass(eq=False)
class Spine(Run):
    """A chain that gets siblings once it has ended.

    Attributes:
        nodes: most nodes of the tree.
        growth: the tree, and `nodes_on` its nodes along the chain, the root first.
    """

    nodes: int = 0
    growth: Growth = field(init=False)
    nodes_on: list[int] = field(init=False, default_factory=lambda: [0])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.growth = Growth(self.sequence, self.law, self.nodes, self.limit, WIDTHS[-1][1])
        if not self.growth.open([0]):
            self.limit = 0

    def ask(self, logits: torch.Tensor) -> torch.Tensor:
        answer = self.growth.ask(self.nodes_on[-1:], logits)
        if not len(answer):
            self.limit = 0
        return answer

    def take(self, answer: torch.Tensor, least: float) -> None:
        growth = self.growth
        growth.take(answer)
        child = growth.draw(self.nodes_on[-1])
        if child is None:
            self.limit = 0
            return
        self.nodes_on.append(child)
        self.tokens.append(growth.tokens[child])
        self.odds.append(growth.odds[child])
        self.pending = self.tokens[-1:]
        if not self.odds[-1] >= least or not growth.open([child]):
            self.limit = 0

    def tree(self) -> TokenTree:
        growth = self.growth
        missing = {above: self._width(node) - 1 for above, node in pairwise(self.nodes_on)}
        while missing := {node: count for node, count in missing.items() if count and growth.promise(node) > 0}:
            node = max(missing, key=growth.promise)
            missing[node] = missing[node] - 1 if growth.draw(node) is not None else 0
        return growth.tree()

    def _width(self, node: int) -> int:
        """How many candidates there are beside a node of the chain, itself included."""
        sure = self.growth.odds[node] / self.growth.odds[self.growth.parents[node]]
        greedy, sampled = next((row[1:] for row in WIDTHS if sure > row[0]), WIDTHS[-1][1:])
        return greedy if self.sequence.pipeline.greedy else sampled


@method(
    name="swift",
    kind="drafter",
    guarantee=Guarantee.LOSSLESS,
    summary="The target drafts without some attention and MLP sub-blocks, chosen while it generates.",
    paper="SWIFT: On-the-Fly Self-Speculative Decoding for LLM Inference Acceleration",
    year=2024,
    needs={"views"},
)
@dataclass(eq=False)
class Swift(SelfDraft):
    """Drafting with sub-blocks skipped. Needs a model of at least 4 layers.

    Attributes:
        skip: share of the inner layers' sub-blocks that is skipped, between 0 and 1.
        length: most tokens of a draft.
        confidence: a draft ends with the first token of a lower probability under the draft.
        window: generated tokens by which a set is scored.
        max_score: the search ends with a set of a higher score.
        patience: ... after so many sets without gain.
        tries: ... after so many sets; 0: the first set stays.
        kappa: weight of uncertainty where the Gaussian process chooses.
        siblings: draft a tree, with further candidates at every depth of the chain.
        contexts: kinds of text whose sets are kept; the one unused for longest is forgotten.
        likeness: how much a prompt's tokens must be like those of a kind's to be of it, 0 to 1; 0: one set for all.
    """

    skip: float = 0.45
    length: int | None = 25
    confidence: float = 0.8
    window: int = 32
    max_score: float = 0.95
    patience: int = 300
    tries: int = 1000
    kappa: float = 2.5
    siblings: bool = False
    contexts: int = 8
    likeness: float = 0.3
    shape: str = field(init=False, repr=False, default="chain")
    drafts: frozenset[str] = field(init=False, repr=False, default=CHAIN_LAWS)
    _contexts: Contexts[Found] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_knobs("swift", self.length, self.confidence)
        if not 0 < self.skip < 1:
            raise BadRequest(f"swift(skip={self.skip}): a number between 0 and 1 is needed")
        for name, least in (("window", 1), ("patience", 1), ("tries", 0), ("contexts", 1)):
            if getattr(self, name) < least:
                raise BadRequest(f"swift({name}={getattr(self, name)}): an integer of at least {least} is needed")
        for name in ("kappa", "max_score"):
            if not getattr(self, name) >= 0:
                raise BadRequest(f"swift({name}={getattr(self, name)}): a number of at least 0 is needed")
        if not 0 <= self.likeness <= 1:
            raise BadRequest(f"swift(likeness={self.likeness}): a number from 0 to 1 is needed")
        if self.siblings:
            self.shape, self.drafts = "tree", TREE_LAWS

    def prepare(self, target: CausalModel) -> CausalModel:
        require_views(target, "drafter 'swift'")
        check_budgets("swift", self, target, "length")
        if target.num_layers < 4:
            raise Unsupported(
                f"drafter 'swift' leaves out layers between the first and the last; {target.name} has "
                f"{target.num_layers} layers, at least 4 are needed"
            )
        self._layers = target.num_layers
        self._contexts = Contexts(target.vocab_size, self.contexts, self.likeness, self._begun)
        return target

    def begin(self, sequence: Sequence) -> None:
        sequence.drafts = self._contexts.of(sequence.tokens)

    def view(self, sequence: Sequence) -> Skip:
        skipped: Skip = sequence.drafts.skipped
        return skipped

    def commit(self, outcomes: Seq[Outcome]) -> None:
        """One more set is tried, for the context that has tried fewest, on one of its sequences that is long enough."""
        ready = [outcome.sequence for outcome in outcomes if outcome.sequence.generated > self.window]
        if ready := [sequence for sequence in ready if self.searching(sequence.drafts.search)]:
            found: Found = min((sequence.drafts for sequence in ready), key=lambda found: found.search.tried)
            own = [sequence for sequence in ready if sequence.drafts is found]
            sequence = found.bench.sequence if found.bench and found.bench.sequence in own else own[0]
            skipped = found.search.propose()
            found.search.report(skipped, self.agreement(sequence, found.search.view(skipped)))
            found.settle()

    def end(self, sequence: Sequence) -> None:
        found, sequence.drafts = sequence.drafts, None
        if found is not None and found.bench is not None and found.bench.sequence is sequence:
            found.bench = None

    def _run(self, sequence: Sequence, nodes: int, depth: int) -> Run:
        run = super()._run(sequence, nodes, depth)
        if not self.siblings:
            return run
        nodes = nodes if run.limit else 0
        return Spine(sequence, run.row, run.limit, run.state, run.pending, law=run.law, nodes=nodes)

    def searching(self, search: Search) -> bool:
        """Whether better sets are still looked for."""
        return search.tried < self.tries and search.stale < self.patience and search.score <= self.max_score

    def agreement(self, sequence: Sequence, view: Skip) -> float:
        """Share of the first `window` generated tokens whose successor the view predicts, given the whole prompt."""
        found: Found = sequence.drafts
        if found.bench is None or found.bench.sequence is not sequence:
            found.bench = self._copied(sequence)
        bench = found.bench
        text = sequence.tokens[sequence.prompt_length : sequence.prompt_length + self.window + 1]
        tree = TokenTree.chain(text[0], text[1:-1])
        best = self._model.score(bench.cache, [bench.row], [tree], view=view).logits.argmax(-1)
        bench.cache.crop(bench.row, sequence.prompt_length)
        return float(np.mean(best.cpu().numpy() == np.array(text[1:])))

    def _begun(self, nearest: Found | None) -> Found:
        first = None if nearest is None else nearest.search.best
        return Found(Search(self._layers, self.skip, self.kappa, first))

    def _copied(self, sequence: Sequence) -> Bench:
        assert sequence.cache is not None
        assert sequence.row is not None
        cache = self._model.new_cache(1, capacity=sequence.prompt_length + self.window)
        row = cache.allocate()
        cache.copy(sequence.row, row, sequence.prompt_length, sequence.cache)
        return Bench(sequence, cache, row)
