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
from paceline.evaluation.acceptance import BOUNDS, ONE, RATES, SAME, bound
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
        below: mean distance to the bound of the verifier's own kind of drafts; `None` for a bound.
    """

    temperature: float
    k: int
    name: str
    mean: float
    error: float
    below: float | None = None


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
        alone = bound(p, q, 1)
        for k in range(1, most + 1):
            bounds = {law: bound(p, q, k, law) for law in dict.fromkeys(BOUNDS.values())}
            for name, rate in RATES.items():
                values, best = rate(p, q, k), alone if name in ONE else bounds[BOUNDS[name]]
                rates.append(_rate(temperature, k, name, values, float((best - values).mean())))
            rates += [_rate(temperature, k, name, bounds[law]) for law, name in BOUND_NAMES.items()]
    return rates


def _rate(temperature: float, k: int, name: str, values: torch.Tensor, below: float | None = None) -> Rate:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return Rate(temperature, k, name, float(values.mean()), error, below)


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
    """Two tables, a line a verifier and columns by temperature and siblings: rates, and how far below its own bound."""
    return f"{_table(found, 'rate', 'mean')}\n\n{_table(found, 'below its own bound', 'below')}"


def _table(found: Survey, title: str, value: str) -> str:
    keys = list(dict.fromkeys((r.temperature, r.k) for r in found.rates))
    lines = [
        f"| {title} | " + " | ".join(f"T={temperature:g}, k={k}" for temperature, k in keys) + " |",
        "|---|" + "---|" * len(keys),
    ]
    for name in dict.fromkeys(rate.name for rate in found.rates if getattr(rate, value) is not None):
        cells = [found.of(temperature, k, name) for temperature, k in keys]
        texts = (f"{getattr(cell, value):z.3f}" if cell else "" for cell in cells)
        lines.append(f"| {_label(name)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _label(name: str) -> str:
    """A row's name, with those of the verifiers that do the same among siblings."""
    if name in BOUND_NAMES.values():
        return name
    return ", ".join(f"`{known}`" for known in (name, *(other for other, same in SAME.items() if same == name)))


def draw(found: Survey, path: Path) -> None:
    """Write a picture, rates above and distances to the bounds below, by temperature; its format follows the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    temperatures = list(dict.fromkeys(rate.temperature for rate in found.rates))
    figure, axes = plt.subplots(2, len(temperatures), sharex=True, sharey="row", squeeze=False, layout="constrained")
    figure.set_size_inches(3.4 * len(temperatures), 5.6)
    for column, temperature in zip(axes.T, temperatures, strict=True):
        for axis, value in zip(column, ("mean", "below"), strict=True):
            _panel(axis, found, temperature, value)
        column[0].set_title(f"temperature {temperature:g}", loc="left", fontsize=10)
        column[1].set_xlabel("drafted siblings k", fontsize=9)
    axes[0][0].set_ylabel("chance that one is accepted", fontsize=9)
    axes[1][0].set_ylabel("below its own bound", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{found.draft} drafts for {found.target}: {sum(found.positions.values())} positions", fontsize=11)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def _panel(axis: Any, found: Survey, temperature: float, value: str) -> None:
    """One value of every verifier at a temperature, by the number of siblings."""
    from matplotlib import pyplot as plt

    colours = dict(zip(RATES, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for name in dict.fromkeys(rate.name for rate in found.rates if getattr(rate, value) is not None):
        rates = [r for r in found.rates if (r.temperature, r.name) == (temperature, name)]
        colour = colours.get(name, "#444444" if "without" in name else "#999999")
        style = "o--" if name in BOUND_NAMES.values() else "o-"
        line = [r.k for r in rates], [getattr(r, value) for r in rates]
        axis.plot(*line, style, color=colour, markersize=3, label=_label(name).replace("`", ""))
    axis.set_xticks(sorted({r.k for r in found.rates}))
    axis.grid(axis="y", color="#ececec")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
