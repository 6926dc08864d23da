"""How often one of k drafted siblings is accepted: every verifier's rate beside the most that any could reach.

For a target law p and a draft law q, exactly:

    rejection   k = 1:  sum min(p, q)
    coupled     k = 1:  sum_v 1 / sum_w max(p_w / p_v, q_w / q_v);  k > 1 by seeded sampling of the noise
    specinfer   the recursion  acc += left sum min(r, q),  left *= 1 - sum min(r, q),  r = norm(max(r - q, 0))
    spectr      1 - (1 - beta(rho*))^k
    optimal     p(Top) + sum_{x not in Top} min(p(x), q'(x))
    recursive   a_1 + .. + a_k, the acceptance vector; earlier draws are enumerated, or sampled where they are many

What a lossless verifier can reach at most with drafts of law Q is an optimal transport:

    alpha* = 1 + min over sets H of tokens of ( p(H) - Q(all drafts in H) )

For draws with and without replacement the best H is a prefix of the tokens sorted by q / p, descending. With
replacement `Q(H) = q(H)^k`. Without, seen as a race of exponential clocks of rates q: all k drafts are in H if the
k-th of H rings before the first outside it, `Q(H) = int Pr(sum_{x in H} Bernoulli(1 - exp(-t q(x))) >= k) dF(t)`, F an
exponential law of rate `1 - q(H)`.

Papers: Hu et al., "Towards Optimal Multi-draft Speculative Decoding", 2025; Sun et al., "SpecTr", 2023; Chen et al.,
"Sequoia", 2024. The integral is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from paceline.errors import BadRequest
from paceline.verifiers.siblings import ROUNDING

#: Largest linear programme, in variables; most cases of refused draws that are enumerated; cases sampled instead.
PROGRAMME, ENUMERATED, SAMPLES = 20_000, 256, 64
#: Least mass outside a set that is resolved; step and beginning of the grid over log t; pairs computed at once.
OUTSIDE, STEP, EARLIEST, CHUNK = 1e-18, 0.4, -12.0, 64


def rejection(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """`[n]` rates of one draw: the overlap of `[n, V]` float64 laws."""
    return p.minimum(q).sum(-1)


def coupled(p: torch.Tensor, q: torch.Tensor, k: int = 1, samples: int = 512, seed: int = 0) -> torch.Tensor:
    """`[n]` chances that the target's choice is among the k tokens that the draft ranks first under the same noise.

    Args:
        p, q: `[n, V]` float64 laws.
        k: siblings; for one the rate is exact.
        samples, seed: of the noise, the same for every pair.
    """
    if k == 1:
        return _coupled_once(p, q)
    generator = np.random.default_rng(seed)
    hits = torch.zeros(len(p), dtype=torch.float64)
    p, q = p.log(), q.log()
    for _ in range(samples):
        noise = torch.from_numpy(generator.gumbel(size=p.shape[-1]))
        chosen = (p + noise).argmax(-1, keepdim=True)
        hits += ((q + noise).topk(min(k, q.shape[-1])).indices == chosen).any(-1)
    return hits / samples


def _coupled_once(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """In the order of q / p the maximum is p's term before a token and q's behind it: prefix sums do the rest."""
    both = (p > 0) & (q > 0)
    order = torch.where(both, q / p.clamp_min(1e-300), torch.where(p > 0, -1.0, torch.inf)).argsort(-1)
    p, q, both = (t.gather(-1, order) for t in (p, q, both))
    before, behind = p.cumsum(-1), q.flip(-1).cumsum(-1).flip(-1) - q
    terms = before / p.clamp_min(1e-300) + behind / q.clamp_min(1e-300)
    return torch.where(both, 1 / terms, 0).sum(-1)


def specinfer(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    """`[n]` rates of k draws with replacement."""
    accepted, left, rest = torch.zeros(len(p), dtype=p.dtype), torch.ones(len(p), dtype=p.dtype), p
    for _ in range(k):
        overlap = rest.minimum(q).sum(-1)
        accepted, left = accepted + left * overlap, left * (1 - overlap)
        rest = _normalised((rest - q).clamp_min(0), rest)
    return accepted


def spectr(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    """`[n]` rates of K-SEQ at the smallest division factor."""
    low, high = torch.ones(len(p), 1, dtype=p.dtype), torch.full((len(p), 1), float(k), dtype=p.dtype)

    def terms(rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        beta = q.minimum(p / rho).sum(-1, keepdim=True).clamp(max=1)
        return beta, 1 - (1 - beta) ** k

    beta, accepted = terms(low)
    high = torch.where(accepted <= beta, low, high)
    for _ in range(50):
        middle = (low + high) / 2
        beta, accepted = terms(middle)
        small = accepted > middle * beta
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return terms(high)[1][:, 0]


def optimal(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    """`[n]` rates of the k - 1 most likely tokens and one draw outside them."""
    best = q.topk(k - 1).indices
    outside = q.scatter(-1, best, 0)
    outside = _normalised(outside, torch.zeros_like(q))
    return p.gather(-1, best).sum(-1) + p.scatter(-1, best, 0).minimum(outside).sum(-1)


def acceptance_vector(p: torch.Tensor, q: torch.Tensor, k: int, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
    """`[n, k]`: the chance that the b-th of k siblings drawn without replacement is the accepted one.

    Refused draws are followed one by one; where they lead to more than `ENUMERATED` cases, `samples` of them stand for
    all, drawn by their probability from the seed, which leaves the expectation exact.
    """
    return torch.stack([_vector(*pair, k, samples, seed) for pair in zip(p, q, strict=True)])


def _vector(p: torch.Tensor, q: torch.Tensor, k: int, samples: int, seed: int) -> torch.Tensor:
    """One pair's vector: a case is what is left of the target, of the draft, and its probability."""
    generator = torch.Generator().manual_seed(seed)
    rest, law, chance = p[None], q[None], p.new_ones(1)
    rates = p.new_zeros(k)
    for b in range(k):
        rates[b] = (chance * rest.minimum(law).sum(-1)).sum()
        refused = (chance[:, None] * (law - rest).clamp_min(0)).flatten()
        picked = refused.nonzero()[:, 0]
        if b == k - 1 or not len(picked):
            break
        chance = refused[picked]
        if len(picked) > ENUMERATED:
            picked = refused.multinomial(samples, replacement=True, generator=generator)
            chance = (refused.sum() / samples).expand(samples)
        case, token = picked // len(p), picked % len(p)
        rest = _normalised((rest - law).clamp_min(0), rest)[case]
        law = law[case].scatter(-1, token[:, None], 0)
        law = _normalised(law, torch.zeros_like(law))
    return rates


def recursive(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    """`[n]` rates of k draws without replacement."""
    return acceptance_vector(p, q, k).sum(-1)


#: Rates by verifier, `f(p, q, k)`; those in `ONE` have one draw whatever k is.
RATES: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "rejection": lambda p, q, k: rejection(p, q),
    "coupled": coupled,
    "specinfer": specinfer,
    "spectr": spectr,
    "recursive": recursive,
    "optimal": optimal,
}
ONE = frozenset({"rejection"})
#: Verifiers that do among siblings what another one does: what `sequoia` adds begins where q has no token left, and a
#: block of one token is a token.
SAME = {"sequoia": "recursive", "block": "rejection"}
#: What the drafts of a verifier follow, hence the bound that is its own.
BOUNDS = {
    "rejection": "replacement",
    "coupled": "distinct",
    "specinfer": "replacement",
    "spectr": "replacement",
    "recursive": "distinct",
    "optimal": "top",
}


def bound(p: torch.Tensor, q: torch.Tensor, k: int, law: str = "replacement") -> torch.Tensor:
    """`[n]` most that a lossless verifier can reach with k drafts of q.

    Args:
        p, q: `[n, V]` float64 laws.
        k: number of drafts.
        law: `"replacement"`, `"distinct"` (without) or `"top"` (the k - 1 most likely tokens and a draw outside them).
            Without replacement, sets are left out that leave less than `OUTSIDE` outside; the bound may then stand a
            little above the optimum, never below.
    """
    if k < 1:
        raise BadRequest(f"bound(k={k}): an integer of at least 1 is needed")
    if law == "top":
        return optimal(p, q, k)
    order = (q / p.clamp_min(1e-300)).argsort(-1, descending=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    if law == "replacement" or (law == "distinct" and k == 1):
        inside = q.cumsum(-1).clamp(max=1) ** k
    elif law == "distinct":
        inside = torch.cat([inside_distinct(part, k) for part in q.split(CHUNK)])
    else:
        raise BadRequest(f"bound(law={law!r}): 'replacement', 'distinct' or 'top' is needed")
    return 1 + (p.cumsum(-1) - inside).amin(-1).clamp(max=0)


def inside_distinct(q: torch.Tensor, k: int) -> torch.Tensor:
    """`[n, V]` chances that all of k draws without replacement are among the first m tokens, for every m.

    Tokens ring at rates q. At time t each of the first m has rung with chance `1 - exp(-t q)`; how many have, up to k,
    is carried from m to m + 1. The first outside rings at rate `1 - q(H)`: the integral over its time, on a grid of
    log t, converges exponentially with the grid's step.

    Args:
        q: `[n, V]` float64 laws in the order of the sets.
        k: number of draws, at least 2.
    """
    outside = torch.cat([q.flip(-1).cumsum(-1).flip(-1)[:, 1:], q.new_zeros(len(q), 1)], -1)
    logs = torch.arange(EARLIEST, math.log(40 / OUTSIDE), STEP, dtype=q.dtype)
    times = logs.exp()
    counts = q.new_zeros(len(q), len(times), k)  # chances that 0 .. k - 1 have rung
    counts[..., 0] = 1
    found = torch.zeros_like(q)
    for m in range(q.shape[-1]):
        stays = (-times * q[:, m, None]).exp()[..., None]
        rung = counts * (1 - stays)
        counts *= stays
        counts[..., 1:] += rung[..., :-1]
        rate = outside[:, m, None] * times
        found[:, m] = (STEP * rate * (-rate).exp() * (1 - counts.sum(-1)).clamp_min(0)).sum(-1)
    sure = ((q > 0).cumsum(-1) >= k).to(q.dtype)
    return torch.where(outside == 0, sure, torch.where(outside < OUTSIDE, 0.0, found)).clamp(max=1)


@dataclass(frozen=True)
class Transport:
    """An optimal way to choose a token of law p when k drafts are known.

    Attributes:
        rate: chance that it is one of the drafts.
        chosen: by tuple of drafts, `[V]` float64 joint probability of these drafts and the token; sums to the tuple's.
    """

    rate: float
    chosen: dict[tuple[int, ...], torch.Tensor]


def transport(p: torch.Tensor, q: torch.Tensor, k: int, law: str = "replacement") -> Transport:
    """The optimum by linear programming over all k-tuples of drafts: an oracle for tiny vocabularies.

    Args:
        p, q: `[V]` float64 laws.
        k: number of drafts.
        law: `"replacement"`, `"distinct"` or `"top"`.

    Raises:
        BadRequest: the programme would have more than `PROGRAMME` variables.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    size = len(q)
    if size ** (k + 1) > PROGRAMME:
        raise BadRequest(f"transport: V={size}, k={k} need {size ** (k + 1)} variables; at most {PROGRAMME} are solved")
    tuples = tuple_law(q, k, law)
    rows: list[int] = []
    columns: list[int] = []
    gains: list[float] = []
    for i, drafts in enumerate(tuples):
        for token in range(size):
            # The last token's share follows from the others'; as an equation of its own rounding could contradict it.
            equations = [i] if token == size - 1 else [i, len(tuples) + token]
            rows += equations
            columns += [len(gains)] * len(equations)
            gains.append(-float(token in drafts))
    matrix = coo_matrix((np.ones(len(rows)), (rows, columns)), (len(tuples) + size - 1, len(gains)))
    sides = np.concatenate([list(tuples.values()), p.numpy()[:-1]])
    found = linprog(gains, A_eq=matrix, b_eq=sides, method="highs")
    chosen = torch.from_numpy(found.x).clamp_min(0).view(len(tuples), size)
    return Transport(-float(found.fun), dict(zip(tuples, chosen, strict=True)))


def tuple_law(q: torch.Tensor, k: int, law: str) -> dict[tuple[int, ...], float]:
    """Probability of every tuple of k drafts of `[V]` q, under `"replacement"`, `"distinct"` or `"top"`."""
    if law == "top":
        best = q.topk(k - 1).indices
        outside = q.index_fill(0, best, 0)
        return {(*best.tolist(), x): float(outside[x] / outside.sum()) for x in range(len(q)) if outside[x] > 0}
    laws: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(k):
        longer: dict[tuple[int, ...], float] = {}
        for known, weight in laws.items():
            left = q.index_fill(0, torch.tensor(known, dtype=torch.int64), 0) if law == "distinct" else q
            for x in range(len(q)):
                if left[x] > 0:
                    longer[*known, x] = weight * float(left[x] / left.sum())
        laws = longer
    return laws


def _normalised(weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Rows over their sums; a row without mass becomes that of `otherwise`."""
    mass = weights.sum(-1, keepdim=True)
    return torch.where(mass >= ROUNDING, weights / mass.clamp_min(ROUNDING), otherwise)
