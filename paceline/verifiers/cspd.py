"""CSpD: speculative sampling of continuous tokens, vectors whose laws have a density.

Draft `x ~ q`; p is the target's density there. Accept x with probability

    min(1, C p(x) / q(x)),    else draw from norm(max(p - q / C, 0))

by rejection: propose `y ~ p` and take it with probability `max(1 - q(y) / (C p(y)), 0)`, so that no integral is needed;
at C = 1 that is one proposal a vector on average, whatever p and q are. C = 1 is lossless: accepted vectors have the
density min(p, q), hence `integral min(p, q)` is the rate, and the others fill it up to p. Where none of `tries`
proposals is taken the vector is a draw of p, and is counted; that moves the law by less than `1 / (e tries)` in total
variation. Any other C emits a law at most `1 - min(C, 1 / C)` from p, as long as proposals are taken. (The paper gives
C as a factor on the ratio; the residual is ours, chosen so that the bound holds.)

The density of a diffusion head is not known. Let both heads run from one initial noise and with one noise for each step
but the last (`trajectory`): given that noise both laws are Gaussians (`conditional_law`), and the rule applied to these
is exact, so that over all noise the head's own law is emitted. The paper's C, made of ratios of both heads' step
deviations, is 1 for equal noise schedules, and changes the law for others. The published code also divides the
exponents by the square of an inner temperature; only Gaussians have such exponents, and it is left out.

The engine's models emit token ids, so it refuses this verifier: call `CSpD.judge` or `speculate`. Laws are
`torch.distributions`; those of bounded support need `validate_args=False`, to be asked about any vector. Densities are
as precise as the laws' parameters, and compared in float64.

Paper: Wang et al., "Continuous Speculative Decoding for Autoregressive Image Generation", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch.distributions import Distribution, Independent, Normal

from paceline.chance import Chance
from paceline.errors import BadRequest, Unsupported
from paceline.models.causal import CausalModel
from paceline.registry import Guarantee, method
from paceline.tree import TokenTree
from paceline.verifiers.base import Verdict, Verifier

#: A step of a diffusion head: a state `[*B, d]` and the step's index to mean and sigma of the next state, both like it.
Head = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Chain:
    """What becomes of drafted vectors. A row of the batch emits `vectors[: accepted + 1]`; what follows is void.

    Attributes:
        vectors: `[m, *B, *E]`, m the most that a row emits.
        accepted: `[*B]` int64, drafted vectors that a row keeps.
        failed: `[*B]` bool, whether its last vector is a draw of the target in place of a failed resampling.
    """

    vectors: torch.Tensor
    accepted: torch.Tensor
    failed: torch.Tensor


@method(
    name="cspd",
    kind="verifier",
    guarantee=Guarantee.LOSSY,
    summary="Speculative sampling of vectors by their densities; lossless at correction=1, the default.",
    paper="Continuous Speculative Decoding for Autoregressive Image Generation",
    year=2024,
    needs={"chain", "draft_law", "density"},
    knob="correction",
)
@dataclass(frozen=True)
class CSpD(Verifier):
    """Rejection sampling along a chain of vectors.

    Attributes:
        correction: factor C on the ratio of densities, above 0; 1 is lossless.
        tries: most proposals of one resampling, at least 1.
    """

    correction: float = 1.0
    tries: int = 1000

    judges = ("distinct", "replacement")
    shapes = frozenset({"chain"})
    choices = frozenset({"sampled"})

    def __post_init__(self) -> None:
        if not 0 < self.correction < math.inf:
            raise BadRequest(f"cspd(correction={self.correction}): a finite number above 0 is needed")
        if self.tries < 1:
            raise BadRequest(f"cspd(tries={self.tries}): an integer of at least 1 is needed")

    def attach(self, target: CausalModel) -> None:
        raise Unsupported(
            f"verifier 'cspd' needs a model whose tokens are vectors with a density, and {target.name} emits token "
            "ids; choose verifier 'coupled', or call paceline.verifiers.cspd.speculate for vectors"
        )

    def verify(self, tree: TokenTree, logp: torch.Tensor, chance: Chance, position: int) -> Verdict:
        raise Unsupported("verifier 'cspd' judges vectors with a density, not token ids; choose verifier 'coupled'")

    @torch.no_grad()
    def judge(
        self,
        drafts: Sequence[torch.Tensor] | torch.Tensor,
        draft_laws: Sequence[Distribution],
        target_laws: Sequence[Distribution],
        chance: Chance,
        position: int,
    ) -> Chain:
        """Judge a chain, or a batch of independent chains.

        Args:
            drafts: n vectors `[*B, *E]`, the i-th drawn from `draft_laws[i]`, as by `draw(.., "draft")`.
            draft_laws: n laws of batch shape B and event shape E.
            target_laws: n + 1 laws of that shape: the target's for every drafted vector, and the one behind them.
            chance: the randomness.
            position: of the first drafted vector.

        Raises:
            BadRequest: numbers or shapes of laws and vectors do not fit.
            ValueError: a density is no number, infinite, or 0 where its own draft lies.
        """
        _check(drafts, draft_laws, target_laws)
        shape = target_laws[0].batch_shape
        vectors: list[torch.Tensor] = []
        alive, accepted, failed = torch.ones(shape).bool(), torch.zeros(shape).long(), torch.zeros(shape).bool()
        for i, (x, draft) in enumerate(zip(drafts, draft_laws, strict=True)):
            target, at = target_laws[i], position + i
            kept = coins(shape, chance, at, "accept") < self.acceptance(target, draft, x).cpu()
            x, lost = self.resample(target, draft, x, alive & ~kept, chance, at)
            vectors.append(x)
            alive, failed = alive & kept, failed | lost
            accepted += alive
            if not alive.any():
                break
        else:
            vectors.append(draw(target_laws[-1], chance, position + len(drafts), "target"))
        return Chain(torch.stack(vectors), accepted, failed)

    def acceptance(self, target: Distribution, draft: Distribution, x: torch.Tensor) -> torch.Tensor:
        """`[*B]` float64 chances that drafted vectors `[*B, *E]` are accepted."""
        proposed = log_density(draft, x)
        if proposed.isneginf().any():
            raise ValueError("cspd: a drafted vector has density 0 under the law that it was drawn from")
        return (log_density(target, x) - proposed + math.log(self.correction)).clamp(max=0).exp()

    def resample(
        self, target: Distribution, draft: Distribution, x: torch.Tensor, rows: torch.Tensor, chance: Chance, at: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors x with those of some rows (`[*B]` bool) drawn from the residual, and the rows where that failed."""
        left = rows
        for i in range(self.tries):
            if not left.any():
                return x, left
            y = draw(target, chance, at, ("residual", i))
            excess = log_density(draft, y) - log_density(target, y) - math.log(self.correction)
            taken = left & (coins(rows.shape, chance, at, ("residual", i)) < -excess.expm1().cpu())
            x, left = _where(taken, y, x), left & ~taken
        return _where(left, draw(target, chance, at, "target"), x), left


@dataclass(frozen=True)
class Generated:
    """What `speculate` gives.

    Attributes:
        vectors: `[length, *E]`.
        passes: how often the target was asked.
        drafted, accepted: numbers of vectors.
        failed: number of vectors that are draws of the target in place of a failed resampling.
    """

    vectors: torch.Tensor
    passes: int
    drafted: int
    accepted: int
    failed: int


def speculate(
    target: Callable[[torch.Tensor, int], Sequence[Distribution]],
    draft: Callable[[torch.Tensor], Distribution],
    prefix: torch.Tensor,
    length: int,
    chance: Chance,
    verifier: CSpD = CSpD(),
    drafts: int = 8,
    prefill: float = 0.15,
) -> Generated:
    """Generate vectors one after the other: the draft model proposes some, the target judges them in one pass.

    Args:
        target: given t vectors `[t, *E]` and k, the laws (event shape E) behind the first k, k + 1, .., t of them.
        draft: given t vectors, the law behind them. Diffusion heads take their noise from `trajectory(chance, t, ..)`,
            t being the number of vectors that a law is behind, in both models.
        prefix: `[t, *E]` vectors to start from, possibly none.
        length: number of further vectors.
        chance: the randomness; positions count from the prefix's first vector.
        verifier: its knobs.
        drafts: most vectors drafted before each pass of the target.
        prefill: share of `length` that comes from the target alone, rounded up.

    Raises:
        BadRequest: a number is out of range, or vectors and laws differ in shape.
        ValueError: see `CSpD.judge`.
    """
    if min(length, drafts) < 1:
        raise BadRequest(f"length={length} with drafts={drafts} is not allowed; both must be at least 1")
    if not 0 <= prefill <= 1:
        raise BadRequest(f"prefill={prefill} is not allowed; a number from 0 to 1 is needed")
    vectors, end, alone = prefix, len(prefix) + length, len(prefix) + math.ceil(prefill * length)
    passes = drafted = accepted = failed = 0
    while (start := len(vectors)) < end:
        longer, laws = vectors, list[Distribution]()
        for at in range(start, min(start + drafts, end - 1) if start >= alone else start):
            laws.append(draft(longer))
            longer = _extended(longer, draw(laws[-1], chance, at, "draft")[None])
        chain = verifier.judge(longer[start:], laws, target(longer, start), chance, start)
        vectors = _extended(vectors, chain.vectors)
        passes, drafted = passes + 1, drafted + len(laws)
        accepted, failed = accepted + int(chain.accepted), failed + int(chain.failed)
    return Generated(vectors[len(prefix) :], passes, drafted, accepted, failed)


def trajectory(chance: Chance, position: int, steps: int, shape: Sequence[int]) -> torch.Tensor:
    """`[steps, *shape]` float64 normal noise of a position: the initial state, then that of each step but the last."""
    return torch.randn((steps, *shape), generator=_generator(chance, position, "trajectory"), dtype=torch.float64)


def conditional_law(head: Head, noise: torch.Tensor) -> Distribution:
    """The Gaussian law of a diffusion head's vector, given all its noise but that of the last step.

    Args:
        head: step k takes a state to `mean + sigma * noise[k + 1]`.
        noise: `[steps, *B, d]`, at least one step, as `trajectory` makes it.

    Returns:
        A law of batch shape B and event shape `[d]`.

    Raises:
        BadRequest: a sigma is not positive and finite, or a shape is not the state's.
    """
    state = noise[0]
    for step, after in enumerate([*noise[1:], None]):
        mean, sigma = head(state, step)
        if not mean.shape == sigma.shape == state.shape:
            shapes = f"mean {tuple(mean.shape)} and sigma {tuple(sigma.shape)}"
            raise BadRequest(f"head: {shapes} at step {step} are not allowed; the state is {tuple(state.shape)}")
        if (wrong := sigma[~((sigma > 0) & (sigma < math.inf))]).numel():
            raise BadRequest(f"head: sigma={wrong[0]:.4g} at step {step} is not allowed; finite, above 0 is needed")
        if after is not None:
            state = mean + sigma * after
    return Independent(Normal(mean, sigma), 1)


def draw(law: Distribution, chance: Chance, position: int, purpose: Hashable) -> torch.Tensor:
    """A sample `[*B, *E]` of a law, fixed by the chance's seed, the position and the purpose.

    `Distribution.sample` takes no generator, so the global ones are seeded for it, and put back afterwards.
    """
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(_seed(chance, position, purpose))
        if gpus:
            torch.cuda.manual_seed_all(_seed(chance, position, purpose))
        return law.sample()


def coins(shape: Sequence[int], chance: Chance, position: int, purpose: Hashable) -> torch.Tensor:
    """`[*shape]` float64 numbers from [0, 1), fixed as in `draw`."""
    return torch.rand(tuple(shape), generator=_generator(chance, position, ("coin", purpose)), dtype=torch.float64)


def log_density(law: Distribution, x: torch.Tensor) -> torch.Tensor:
    """`[*B]` float64, possibly minus infinity. Raises `ValueError` where it is no number, or infinite."""
    found = law.log_prob(x).double()
    if not (found < math.inf).all():
        raise ValueError(f"cspd: a density under {law} is infinite or no number; its parameters are unusable")
    return found


def _generator(chance: Chance, position: int, purpose: Hashable) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(chance, position, purpose))


def _seed(chance: Chance, position: int, purpose: Hashable) -> int:
    return int(chance.uniform(position, ("cspd", purpose)) * 2**53)


def _where(rows: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The new vectors in some rows of the batch."""
    return torch.where(rows.to(old.device).reshape(rows.shape + (1,) * (old.dim() - rows.dim())), new, old)


def _extended(vectors: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    if more.shape[1:] != vectors.shape[1:]:
        given, drawn = tuple(vectors.shape[1:]), tuple(more.shape[1:])
        raise BadRequest(f"prefix: vectors of shape {given} are not allowed; the models' laws are over {drawn}")
    return torch.cat([vectors, more])


def _check(
    drafts: Sequence[torch.Tensor] | torch.Tensor, draft_laws: Sequence[Distribution], laws: Sequence[Distribution]
) -> None:
    """Raises `BadRequest` where numbers or shapes do not fit."""
    n = len(drafts)
    if (len(draft_laws), len(laws)) != (n, n + 1):
        raise BadRequest(
            f"cspd: {len(draft_laws)} draft_laws and {len(laws)} target_laws for {n} drafts are not allowed; {n} and "
            f"{n + 1} are needed"
        )
    shapes = {(tuple(law.batch_shape), tuple(law.event_shape)) for law in (*draft_laws, *laws)}
    if len(shapes) > 1:
        raise BadRequest(f"cspd: laws of batch and event shapes {sorted(shapes)} are not allowed; all must be equal")
    ((batch, event),) = shapes
    if wrong := [tuple(x.shape) for x in drafts if tuple(x.shape) != batch + event]:
        raise BadRequest(f"cspd: drafts of shape {wrong[0]} are not allowed; the laws are over {batch + event}")
