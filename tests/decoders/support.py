"""A model that writes given texts, a tokenizer of short strings, and a drafter that checks what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from paceline import Engine
from paceline.drafters.base import Drafter, Outcome
from paceline.requests import Result
from paceline.sequence import Sequence as Record
from paceline.testing import TabularModel, random_table
from paceline.testing.running import finish, submit
from paceline.testing.tabular import Table
from paceline.tree import TokenTree

#: Token 0 ends texts and shows no text.
WORDS = ["<end>", "a", "b", "ab", "ba", "c", "abc", " "]
VOCABULARY = len(WORDS)
END = 0


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, joined without spaces."""
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")


def text_of(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in tokens if token != END)


def scripted(scripts: Mapping[tuple[int, ...], Sequence[int]], share: float = 0.9) -> Table:
    """After a prompt, the script's next token has probability `share` (nearly) wherever the text follows the script."""
    noise = random_table(VOCABULARY, seed=11)

    def table(prefix: tuple[int, ...]) -> torch.Tensor:
        logits = noise(prefix).clone()
        for prompt, script in scripts.items():
            done = prefix[len(prompt) :]
            if prefix[: len(prompt)] == prompt and len(done) < len(script) and done == tuple(script[: len(done)]):
                logits[script[len(done)]] = float(torch.tensor(share / (1 - share)).log()) + 2
        return logits.log_softmax(-1)

    return table


def engine_of(table: Table, *, rows: int = 3, context: int = 64, nodes: int = 12) -> Engine:
    model = TabularModel(table, VOCABULARY, end_tokens=[END], context=context)
    return Engine(model, tokenizer(), drafter="none", max_rows=rows, nodes=nodes)


def run(engine: Engine, prompt: Sequence[int], **options: object) -> Result:
    """One request to its end; options as for `submit`."""
    (record,) = submit(engine, list(prompt), **options)  # type: ignore[arg-type]
    finish(engine)
    return engine.result(record)


@dataclass(eq=False)
class Witness(Drafter):
    """Drafts what another drafter drafts, and checks at every verb that cache, tokens and outcome agree.

    Attributes:
        told: tokens it was told of, by sequence.
        verbs: what was called, in order.
    """

    inner: Drafter
    engine: Engine
    told: dict[Record, list[int]] = field(default_factory=dict)
    verbs: list[str] = field(default_factory=list)

    @property
    def shape(self) -> str:  # type: ignore[override]
        return self.inner.shape

    def begin(self, sequence: Record) -> None:
        self.verbs.append("begin")
        self.told[sequence] = []
        self.inner.begin(sequence)

    def propose(self, sequences: Sequence[Record], budget: Sequence[tuple[int, int]]) -> list[TokenTree]:
        self.verbs.append("propose")
        for sequence, (nodes, depth) in zip(sequences, budget, strict=True):
            assert depth < sequence.remaining
            assert len(sequence.tokens) + min(nodes, depth) <= self.engine.decoder.cache.limit
        return self.inner.propose(sequences, budget)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.verbs.append("observe")
        self.inner.observe(outcomes)

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        self.verbs.append("commit")
        for outcome in outcomes:
            sequence = outcome.sequence
            self.told[sequence] += outcome.tokens
            assert sequence.tokens[sequence.prompt_length :] == self.told[sequence]
            drafted = outcome.tree.tokens[outcome.path[1:]].tolist()
            assert outcome.tokens[: len(drafted)] == drafted
            assert len(outcome.tokens) - len(drafted) in (0, 1)
            assert outcome.logits.shape == (len(outcome.tree), VOCABULARY)
            row = sequence.row
            assert row is not None
            assert (row.trunk, row.parents) == (len(sequence.tokens) - 1, [])
            stored = self.engine.decoder.cache.layers[0].keys[row.index, 0, : row.trunk, 0]  # type: ignore[union-attr]
            assert stored.tolist() == sequence.tokens[:-1]
        self.inner.commit(outcomes)

    def end(self, sequence: Record) -> None:
        self.verbs.append("end")
        assert sequence.row is None
        self.inner.end(sequence)
