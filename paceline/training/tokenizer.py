"""Byte-level BPE for code, small enough for a pocket model.

The pre-tokenizer decides what may become one token. Newline and the following indentation stay together, so
that "end of line, two levels deep" is a single token; a word takes the space or dot before it (` return`,
`.append`); digits stay single, so numbers need no vocabulary. Every byte is in the alphabet: any text
survives a round trip. No token is added when encoding; `<|endoftext|>` separates documents in training and
ends a generation.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
#: Fewest tokens, the bytes and the end token; most, which packed files have room for.
LEAST, MOST = 257, 2**16
PIECES = (
    r"\s*[\r\n]+[ \t]*"  # line ends with the next line's indentation
    r"|[ .]?[\p{L}\p{M}_]+"  # words and identifiers
    r"| ?\p{N}"  # single digits
    r"| ?[^\s\p{L}\p{M}\p{N}_]+"  # runs of punctuation
    r"|\s+(?!\S)|\s+"  # spaces inside a line
)


def train_tokenizer(
    texts: Iterable[str], vocabulary: int = VOCABULARY, max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """Learn `vocabulary` tokens (special ones included) from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
