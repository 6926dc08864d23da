"""Folders as users have them: shards, tied heads, several end tokens, chat templates; and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaModel
from transformers.utils import logging

from models.architectures import SUPPORTED, build
from paceline import Engine
from paceline.errors import BadRequest, ModelError
from paceline.training.tokenizer import train_tokenizer

logging.disable_progress_bar()
TOKENIZER = train_tokenizer(["def add(a, b):\n    return a + b\n" * 3], 300)
TOKENIZER.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
PROMPT, NEW = "def add(a", 20


def checkpoint(folder: Path, architecture: str = "Llama", **changes: Any) -> Path:
    """A sharded folder of a random model, with a tokenizer."""
    config, own = SUPPORTED[architecture]
    build(config, {**own, "vocab_size": len(TOKENIZER), **changes}).save_pretrained(folder, max_shard_size="20KB")
    TOKENIZER.save_pretrained(folder)
    return folder


def generated(folder: Path, **options: Any) -> list[int]:
    """What transformers says after the prompt."""
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = TOKENIZER(PROMPT)["input_ids"]
    text = module.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, pad_token_id=0, **options)
    return list(text[0, len(ids) :].tolist())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen2, window", "Gemma 2", "GPT-2", "Phi-3", "Mixtral", "OPT"])
def test_a_folder_is_driven_as_transformers_drives_it(architecture: str, tied: bool, tmp_path: Path) -> None:
    # Often the embeddings have more rows than the tokenizer has tokens.
    folder = checkpoint(tmp_path, architecture, tie_word_embeddings=tied, vocab_size=len(TOKENIZER) + 3 * tied)
    assert len(list(folder.glob("*.safetensors"))) > 2
    free = generated(folder, eos_token_id=None)
    GenerationConfig(eos_token_id=[free[8], free[14]], do_sample=True, temperature=0.5).save_pretrained(folder)
    reference = free[: 1 + min(i for i, token in enumerate(free) if token in (free[8], free[14]))]
    engine = Engine.load(str(folder), dtype="float32", drafter="none")
    assert engine.model.end_tokens == {free[8], free[14]}
    for drafter in ("none", "recycling"):
        result = engine.generate(PROMPT, max_new_tokens=NEW, drafter=drafter)
        assert (result.tokens, result.finish_reason) == (reference, "stop")
    assert engine.generate(PROMPT, max_new_tokens=NEW, ignore_eos=True).tokens == free


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def behead(folder: Path) -> None:
    body = LlamaModel.from_pretrained(folder)
    remove(folder, "*.safetensors*")
    body.save_pretrained(folder)


def pickle(folder: Path) -> None:
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    remove(folder, "*.safetensors*")
    torch.save(weights, folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no head": (behead, "lacks lm_head.weight; a whole model"),
    "too few layers": (lambda f: configure(f, num_hidden_layers=3), r"lacks model\.layers\.2\."),
    "other widths": (lambda f: configure(f, hidden_size=64), r"does not fit its config.json: .* is \["),
    "a shard is missing": (lambda f: remove(f, "model-00002*"), "cannot be loaded: .*00002"),
    "no weights": (lambda f: remove(f, "*.safetensors*"), "no file named model.safetensors"),
    "a pickle": (pickle, "allow_pickle=True accepts it"),
    "a truncated shard": (
        lambda f: (f / "model-00001-of-00006.safetensors").write_bytes(b"version"),
        "cannot be loaded",
    ),
    "an unreadable config": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON"),
    "an unknown architecture": (lambda f: configure(f, model_type="nosuch"), "nosuch"),
    "a missing package": (lambda f: configure(f, quantization_config={"quant_method": "gptq", "bits": 4}), "requires"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    damage, reason = BROKEN[name]
    damage(checkpoint(tmp_path, tie_word_embeddings=False))
    with pytest.raises(ModelError, match=reason):
        Engine.load(str(tmp_path), dtype="float32")


def test_a_pickle_is_accepted_on_request(tmp_path: Path) -> None:
    pickle(checkpoint(tmp_path))
    assert Engine.load(str(tmp_path), dtype="float32", allow_pickle=True).generate(PROMPT, max_new_tokens=2).tokens


def test_tokenizers_that_are_missing_or_broken(tmp_path: Path) -> None:
    remove(checkpoint(tmp_path), "tokenizer*")
    engine = Engine.load(str(tmp_path), dtype="float32")
    assert len(engine.generate([3, 4], max_new_tokens=2).tokens) == 2
    with pytest.raises(BadRequest, match="a string needs a tokenizer"):
        engine.generate(PROMPT)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadRequest, match=r"tokenizer: .* cannot be loaded"):
        Engine.load(str(tmp_path), dtype="float32")


@pytest.mark.parametrize("architecture", ["Llama", "Phi-3"])
def test_long_rope_stays_within_the_length_of_its_short_factors(architecture: str) -> None:
    """Beyond it, the rotation of earlier tokens would depend on how the text was cut into passes."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 30}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 30}
    config, own = SUPPORTED[architecture]
    module = build(config, {**own, **changes})
    engine = Engine.load(module, drafter="none")
    reference = module.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=28, pad_token_id=0)
    for drafter in ("none", "recycling", "jacobi"):
        result = engine.generate([5, 6, 7], max_new_tokens=60, drafter=drafter)
        assert result.tokens == reference[0, 3:].tolist()
        assert result.finish_reason == "length"
    with pytest.raises(BadRequest, match="31 tokens exceed the context of 30"):
        engine.generate([5] * 31)
