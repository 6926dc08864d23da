"""Log-probabilities of chosen tokens, of the raw model and of the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paceline.requests import TokenLogprob


def token_logprobs(logits: torch.Tensor, law: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """One entry a token.

    Args:
        logits: `[n, V]` raw scores at the n prefixes.
        law: `[n, V]` normalised log-distribution of the policy there.
        tokens: the n chosen tokens.
        top: alternatives to list (at most V).
    """
    raw = logits.log_softmax(-1)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    own = torch.cat([raw.gather(-1, index), law.gather(-1, index)], -1).tolist()
    if not top:
        return [TokenLogprob(t, a, b) for t, (a, b) in zip(tokens, own, strict=True)]
    best, best_law = _top(raw, top), _top(law, top)
    return [TokenLogprob(t, a, b, best[i], best_law[i]) for i, (t, (a, b)) in enumerate(zip(tokens, own, strict=True))]


def prompt_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of prompt tokens after the first. `logits`: `[n, V]` at the prefixes before them. No policy acts on a prompt."""
    raw = logits.log_softmax(-1)
    return token_logprobs(logits, raw, tokens, top)


def _top(rows: torch.Tensor, k: int) -> list[tuple[tuple[int, float], ...]]:
    values, ids = rows.topk(min(k, rows.shape[-1]), -1)
    # Tokens that the policy forbids are no alternatives.
    return [
        tuple((i, v) for i, v in zip(row_ids, row, strict=True) if v > -torch.inf)
        for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
