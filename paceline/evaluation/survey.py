"""Acceptance rates of every verifier on a real pair of models: collected laws, a table, a picture.

Both models read the same texts; at some of their positions each says what comes next. No text is generated, so one
collection serves all temperatures and numbers of siblings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from paceline.errors import BadRequest
from paceline.evaluation.acceptance import BOUNDS, RATES, bound
from paceline.evaluation.provenance import provenance
from paceline.evaluation.workloads import Prompt
from paceline.models.causal import CausalModel
from paceline.requests import COLDEST, HOTTEST

#: Names of the bounds in tables, by the law of the drafts.
BOUND_NAMES = {"replacement": "bound, with replacement", "distinct": "bound, without replacement"}
#: Most siblings; the exact rates take time that grows quickly with their number.
MOST = 16


@dataclass(frozen=True)
class Rate:
    """A mean over all collected positions.

    Attributes:
        temperature: of both laws.
        k: siblings.
        name: a verifier, or one of `BOUND_NAMES`.
        mean: rate of acceptance.
        error: standard error of the mean over positions.
    """

    temperature: float
    k: int
    name: str
    mean: float
    error: float


@dataclass(frozen=True)
class Survey:
    """All rates of one pair of models.

    Attributes:
        target, draft: names of the models.
        positions: number of collected positions, by workload.
        rates: the results.
        made: with what (see `provenance`).
    """

    target: str
    draft: str
    positions: dict[str, int]
    rates: list[Rate]
    made: dict[str, Any] = field(default_factory=provenance)

    def of(self, temperature: float, k: int, name: str) -> Rate | None:
        return next((r for r in self.rates if (r.temperature, r.k, r.name) == (temperature, k, name)), None)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def collect(
    target: CausalModel, draft: CausalModel, texts: Sequence[Sequence[int]], positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both models at the same places.

    Args:
        target, draft: models of one vocabulary.
        texts: token ids; at least two each.
        positions: most positions of a text, evenly spread over its second half.

    Returns:
        Two `[n, V]` float64 tensors of logits.
    """
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for text in texts:
        first = len(text) // 2
        places = torch.linspace(first, len(text) - 1, min(positions, len(text) - first)).round().long()
        for model, rows in zip((target, draft), found, strict=True):
            cache = model.new_cache(1)
            logits = torch.cat(model.prefill(cache, cache.allocate(), list(text), logits=True))
            rows.append(logits[places.to(logits.device), : min(target.vocab_size, draft.vocab_size)].double().cpu())
    return torch.cat(found[0]), torch.cat(found[1])


def survey(target: torch.Tensor, draft: torch.Tensor, temperatures: Sequence[float], most: int) -> list[Rate]:
    """Mean rates of all verifiers and both bounds.

    Args:
        target, draft: `[n, V]` float64 logits.
        temperatures: above 0, applied to both.
        most: largest number of siblings.

    Raises:
        BadRequest: a temperature or a number that is not allowed.
    """
    check(temperatures, most)
    rates = []
    for temperature in temperatures:
        p, q = (target / temperature).softmax(-1), (draft / temperature).softmax(-1)
        for k in range(1, most + 1):
            found = {name: rate(p, q, k) for name, rate in RATES.items()}
            found |= {BOUND_NAMES[law]: bound(p, q, k, law) for law in dict.fromkeys(BOUNDS.values())}
            for name, values in found.items():
                error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
                rates.append(Rate(temperature, k, name, float(values.mean()), error))
    return rates


def check(temperatures: Sequence[float], most: int) -> None:
    """Refuse what no survey can be made of. Raises `BadRequest`."""
    if not 1 <= most <= MOST:
        raise BadRequest(f"most: {most} is not allowed; 1 to {MOST} siblings are")
    for temperature in temperatures:
        if not COLDEST <= temperature <= HOTTEST:
            allowed = f"numbers above 0, from {COLDEST:g} to {HOTTEST:g}, are needed"
            raise BadRequest(f"temperatures: {temperature} is not allowed; {allowed}")


def tokens_of(prompts: Sequence[Prompt], tokenizer: Any, longest: int) -> list[list[int]]:
    """Each prompt with its original continuation, where there is one, as at most `longest` ids."""
    texts = [list(tokenizer(prompt.text + (prompt.reference or ""))["input_ids"])[:longest] for prompt in prompts]
    return [text for text in texts if len(text) > 1]


def markdown(found: Survey) -> str:
    """A table with a line a verifier, and columns by temperature and siblings."""
    keys = list(dict.fromkeys((r.temperature, r.k) for r in found.rates))
    lines = [
        "| | " + " | ".join(f"T={temperature:g}, k={k}" for temperature, k in keys) + " |",
        "|---|" + "---|" * len(keys),
    ]
    for name in dict.fromkeys(rate.name for rate in found.rates):
        cells = [found.of(temperature, k, name) for temperature, k in keys]
        label = name if name in BOUND_NAMES.values() else f"`{name}`"
        lines.append(f"| {label} | " + " | ".join(f"{cell.mean:.3f}" if cell else "" for cell in cells) + " |")
    return "\n".join(lines)


def draw(found: Survey, path: Path) -> None:
    """Write a picture, a panel a temperature; its format follows the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    temperatures = list(dict.fromkeys(rate.temperature for rate in found.rates))
    names = list(dict.fromkeys(rate.name for rate in found.rates))
    figure, axes = plt.subplots(
        1, len(temperatures), figsize=(3.4 * len(temperatures), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for name, colour in zip(names, colours, strict=False):
            rates = [r for r in found.rates if (r.temperature, r.name) == (temperature, name)]
            dashed = name in BOUND_NAMES.values()
            shade = ("#444444" if "without" in name else "#999999") if dashed else colour
            style = "o--" if dashed else "o-"
            axis.plot([r.k for r in rates], [r.mean for r in rates], style, color=shade, markersize=3, label=name)
        axis.set_title(f"temperature {temperature:g}", loc="left", fontsize=10)
        axis.set_xlabel("drafted siblings k", fontsize=9)
        axis.set_xticks(sorted({r.k for r in found.rates}))
        axis.grid(axis="y", color="#ececec")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("chance that one is accepted", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{found.draft} drafts for {found.target}: {sum(found.positions.values())} positions", fontsize=11)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)
