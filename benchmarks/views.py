"""What lossy methods lose and save on held-out code: each lossy view, and three lossy verifiers, at several knobs.

    python benchmarks/views.py                          # quality alone
    python benchmarks/views.py --pairs 5                # and speed, next to the whole model
    python benchmarks/views.py --views "exit(layer=3)" "skip(mlp=1)"

Perplexity is that of the shipped code workload (prompt and reference) behind the first tokens of each text, which are
taken for the prompt. "Attention" and "MLPs" are shares of the sub-blocks that the other tokens went through. Speeds are
of pairs of runs, the view's next to the whole model's, in turns; of each kind the median.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline import Engine
from paceline.evaluation.workloads import load
from paceline.models.causal import CausalModel
from paceline.models.loading import load_model, load_tokenizer
from paceline.models.views import Runs, View, ViewRule
from paceline.registry import build
from paceline.tree import TokenTree

#: Three settings a view, for a model of four layers.
VIEWS = (
    "exit(layer=3)",
    "exit(layer=2)",
    "exit(layer=1)",
    "skip(mlp=1)",
    "skip(mlp='1 2')",
    "skip(attention=1, mlp=1)",
    "unified(speedup=1)",
    "unified(speedup=1.3)",
    "unified(speedup=2)",
    "skipdecode(least=3, span=64)",
    "skipdecode(least=2, span=64)",
    "skipdecode(least=1, span=64)",
    "ffn_skip(similarity=0.98, cap=0.5, cold=1)",
    "ffn_skip(similarity=0.97, cap=0.5, cold=1)",
    "ffn_skip(similarity=-1, cap=0.5, cold=1)",
    "saturation(threshold=0.95)",
    "saturation(threshold=0.93)",
    "saturation(threshold=0.9)",
)
ETAS = (0.1, 1.0, 10.0)
#: Drafters, and verifiers that emit some of what they ask for unverified; the first of each kind does not.
UNVERIFIED = (
    *(("lexical", f"lexical(beta={beta})") for beta in (1.1, 0.9, 0.5, 0.2)),
    *(("ceed(block=8)", f"ceed(cap={cap})") for cap in (8, 6, 4, 2, 1)),
)
Text = list[int]


class Counting(ViewRule):
    """A rule, and how many of the sub-blocks ran under it.

    Attributes:
        ran: mean number of attention and of feed-forward sub-blocks a token, one pair a pass.
    """

    def __init__(self, rule: ViewRule) -> None:
        self.rule, self.ran = rule, list[list[float]]()

    def view(self, generated: np.ndarray, layers: int) -> View:
        self.ran.append([0.0, 0.0])
        return Counted(self.rule.view(generated, layers), self.ran[-1])


class Counted(View):
    def __init__(self, view: View, ran: list[float]) -> None:
        self.view, self.ran = view, ran
        self.first, self.last, self.states, self.fills = view.first, view.last, view.states, view.fills
        self.source, self.fed, self.passed = view.source, view.fed, view.passed  # type: ignore[method-assign]

    def attends(self, layer: int) -> Runs:
        return self._count(0, self.view.attends(layer))

    def feeds(self, layer: int) -> Runs:
        return self._count(1, self.view.feeds(layer))

    def _count(self, kind: int, runs: Runs) -> Runs:
        self.ran[kind] += float(runs) if isinstance(runs, bool) else float(runs.float().mean())
        return runs


def laws(model: CausalModel, text: Text, read: int, view: ViewRule | None = None) -> Tensor:
    """`[n, V]` log-probabilities behind each token of a text but the last, from token `read` on."""
    cache = model.new_cache(1)
    row = cache.allocate()
    row.prompt = read
    model.score(cache, [row], [TokenTree.chain(text[0], text[1:read])], view=view)
    cache.keep(row, range(read))
    tree = TokenTree.chain(text[read], text[read + 1 : -1])
    return model.score(cache, [row], [tree], view=view).logits.log_softmax(-1)


def perplexity(model: CausalModel, texts: list[Text], read: int, view: ViewRule | None = None) -> float:
    losses = [F.nll_loss(laws(model, text, read, view), torch.tensor(text[read + 1 :])) for text in texts]
    return float(torch.stack(losses).mean().exp())


def speeds(whole: Engine, other: Engine, texts: list[Text], new: int, pairs: int) -> tuple[float, float]:
    """Median tokens/s of decoding, and the median of the pairs' ratios."""
    found: list[list[float]] = [[], []]
    for i in range(pairs * len(texts)):
        for side in (0, 1) if i % 2 else (1, 0):
            result = (whole, other)[side].generate(texts[i % len(texts)], max_new_tokens=new, ignore_eos=True)
            stats = result.stats
            seconds = stats.draft + stats.score + stats.judge + stats.keep + stats.other
            found[side].append((len(result.tokens) - 1) / seconds)
    ratios = [b / a for a, b in zip(*found, strict=True)]
    return statistics.median(found[1]), statistics.median(ratios)


def rows_of_views(arguments: argparse.Namespace, model: CausalModel, texts: list[Text]) -> Iterator[list[str]]:
    yield ["view", "perplexity", "× whole", "attention", "MLPs", *(["tokens/s", "× whole"] if arguments.pairs else [])]
    plain = perplexity(model, texts, arguments.read)
    yield ["the whole model", f"{plain:.2f}", "1.00", "100%", "100%", *(["", "1.00"] if arguments.pairs else [])]
    options: dict[str, Any] = {"dtype": arguments.dtype, "drafter": "none"}
    whole = Engine.load(arguments.model, **options) if arguments.pairs else None
    for spec in arguments.views:
        rule = build("view", spec)
        rule.check(model.num_layers)
        counting = Counting(rule)
        lossy = perplexity(model, texts, arguments.read, counting)
        shares = np.mean(counting.ran[1::2], 0) / model.num_layers  # without the prompts' passes
        row = [f"`{spec}`", f"{lossy:.2f}", f"{lossy / plain:.2f}", *(f"{share:.0%}" for share in shares)]
        if whole is not None:
            other = Engine.load(arguments.model, view=spec, **options)
            prompts = [text[: arguments.read] for text in texts]
            rate, ratio = speeds(whole, other, prompts, arguments.new, arguments.pairs)
            row += [f"{rate:.0f}", f"{ratio:.2f}"]
        yield row


def rows_of_transfer(
    arguments: argparse.Namespace, model: CausalModel, draft: CausalModel, texts: list[Text]
) -> Iterator[list[str]]:
    """How far `rapid(eta)` moves the law of a drafted token, given a small model as the draft."""
    yield ["verifier", "total variation", "perplexity"]
    pairs = [[laws(m, text, arguments.read).double().exp() for m in (model, draft)] for text in texts]
    for eta in (0.0, *ETAS):
        moved = build("verifier", f"rapid(eta={eta})").transferred
        new = [torch.stack([moved(p, q) for p, q in zip(*pair, strict=True)]) for pair in pairs]
        apart = torch.cat([(a - pair[0]).abs().sum(-1) / 2 for a, pair in zip(new, pairs, strict=True)]).mean()
        following = [torch.tensor(text[arguments.read + 1 :])[:, None] for text in texts]
        losses = [-a.gather(1, token).log().mean() for a, token in zip(new, following, strict=True)]
        yield [f"`rapid(eta={eta})`", f"{apart:.3f}", f"{torch.stack(losses).mean().exp():.2f}"]


def rows_of_unverified(arguments: argparse.Namespace, texts: list[Text]) -> Iterator[list[str]]:
    """How much of a greedy text changes where tokens are emitted unverified, and how many a pass then brings."""
    yield ["drafter", "verifier", "same tokens before the first other one", "tokens a pass"]
    engine = Engine.load(arguments.model, dtype=arguments.dtype)
    prompts = [text[: len(text) // 2] for text in texts]
    options: dict[str, Any] = {"max_new_tokens": arguments.new, "ignore_eos": True}
    plain = [result.tokens for result in engine.generate(prompts, drafter="none", **options)]
    for drafter, verifier in UNVERIFIED:
        results = engine.generate(prompts, drafter=drafter, verifier=verifier, **options)
        equal = [
            np.cumprod(np.array(r.tokens) == np.array(tokens)).mean() for r, tokens in zip(results, plain, strict=True)
        ]
        passes = sum(r.stats.forward_passes for r in results)
        yield [f"`{drafter}`", f"`{verifier}`", f"{np.mean(equal):.0%}", f"{arguments.new * len(results) / passes:.2f}"]


def table(rows: Iterator[list[str]]) -> None:
    """Print a Markdown table, a row as soon as it is known."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if not number:
            print("|" + "---|" * len(row))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-code")
    parser.add_argument("--draft", default="pocket-code-draft", help="whose law `rapid` moves towards")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=int, default=12, help="how many of the workload's texts")
    parser.add_argument("--length", type=int, default=240, help="tokens of a text")
    parser.add_argument("--read", type=int, default=48, help="so many first tokens are the prompt")
    parser.add_argument("--new", type=int, default=96, help="tokens to generate")
    parser.add_argument("--pairs", type=int, default=0, help="runs a text and side; 0: no speeds")
    parser.add_argument("--views", nargs="+", default=VIEWS)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    prompts = load(["code"])[0]["code"]
    texts = [tokenizer(prompt.text + (prompt.reference or ""))["input_ids"] for prompt in prompts]
    texts = [text[: arguments.length] for text in texts if len(text) >= arguments.length][: arguments.texts]
    model, draft = (load_model(name, dtype=arguments.dtype, fast=False) for name in (arguments.model, arguments.draft))
    print(f"{len(texts)} texts of {arguments.length} tokens, {arguments.model} in {arguments.dtype}\n")
    table(rows_of_views(arguments, model, texts))
    table(rows_of_transfer(arguments, model, draft, texts))
    table(rows_of_unverified(arguments, texts))


if __name__ == "__main__":
    main()
