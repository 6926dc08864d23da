"""Do two models mean the same tokens by the same ids?"""

from __future__ import annotations

from typing import Any

from paceline.errors import BadRequest
from paceline.models.causal import CausalModel
from paceline.models.loading import load_tokenizer


def check_vocabulary(draft: CausalModel, target: CausalModel) -> None:
    """Refuse a draft model whose token ids are not the target's.

    Tables of different sizes are allowed where both models' tokenizers are at hand and agree: what is beyond the
    tokenizer in either is padding. Added tokens (chat markers and the like) may differ; a draft that misreads one
    costs acceptance, never correctness.

    Raises:
        BadRequest: names both sizes and the difference.
    """
    sizes = f"{draft.name} has {draft.vocab_size} tokens, {target.name} has {target.vocab_size}"
    words, wanted = _words(draft), _words(target)
    if words is None or wanted is None:
        if draft.vocab_size != target.vocab_size:
            raise BadRequest(
                f"draft: {sizes}, and without both tokenizers the rest cannot be taken for padding; "
                "a draft model needs the target's vocabulary"
            )
        return
    different = [word for word in words.keys() | wanted.keys() if words.get(word) != wanted.get(word)]
    if different:
        word = min(different)
        raise BadRequest(
            f"draft: {sizes}, and {len(different)} of them mean something else (such as {word!r}: id "
            f"{words.get(word)} and {wanted.get(word)}); a draft model needs the target's vocabulary; "
            "drafter 'translate' takes any"
        )


def tokenizer_of(model: CausalModel) -> Any:
    """The tokenizer that an engine uses with a model, else the one beside its weights, else `None`."""
    if model.tokenizer is None and getattr(model, "module", None) is not None:
        model.tokenizer = load_tokenizer(model.module)
    return model.tokenizer


def _words(model: CausalModel) -> dict[str, int] | None:
    """The ordinary tokens of a model's tokenizer, or `None`."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        return None
    added = tokenizer.get_added_vocab()
    return {word: i for word, i in tokenizer.get_vocab().items() if word not in added}
