"""Tiny random encoder-decoder models of many architectures."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

VOCABULARY, WINDOW = 61, 6
#: Ids that tokenizers do not give as text; sources in tests leave them alone.
START, PAD = 2, 1
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": None,
    "decoder_start_token_id": START,
    "tie_word_embeddings": False,
}
#: The T5 family: a relative bias, whose buckets end early so that short texts have all of them.
RELATIVE = {
    **COMMON,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
#: The BART family: a table of positions.
TABLE = {
    **COMMON,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 200,
    "forced_eos_token_id": None,
}
ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 200,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
GEMMA = {**{name: COMMON[name] for name in COMMON if name != "d_model"}, "encoder": ROTARY, "decoder": {**ROTARY}}
#: Name: configuration class, its options, and a seed with which the texts wander.
SUPPORTED: dict[str, tuple[str, dict[str, Any], int]] = {
    "T5": ("T5Config", RELATIVE, 1),
    "T5, gated": ("T5Config", {**RELATIVE, "feed_forward_proj": "gated-gelu"}, 4),
    "mT5": ("MT5Config", RELATIVE, 4),
    "UMT5": ("UMT5Config", RELATIVE, 7),
    "LongT5": ("LongT5Config", {**RELATIVE, "local_radius": 4}, 1),
    "BART": ("BartConfig", TABLE, 0),
    "mBART": ("MBartConfig", TABLE, 0),
    "Marian": ("MarianConfig", {**TABLE, "decoder_vocab_size": VOCABULARY}, 9),
    "Pegasus": ("PegasusConfig", TABLE, 9),
    "M2M100, NLLB": ("M2M100Config", TABLE, 7),
    "Blenderbot": ("BlenderbotConfig", TABLE, 0),
    "PLBart": ("PLBartConfig", TABLE, 4),
    "MVP": ("MvpConfig", TABLE, 0),
    "BigBird-Pegasus": ("BigBirdPegasusConfig", {**TABLE, "attention_type": "original_full"}, 3),
    "T5Gemma": ("T5GemmaConfig", GEMMA, 0),
}
#: Standard deviations of weights, by what their names hold.
SCALES = {"embed": 1.0, "shared": 1.0, "fc": 0.05, "": 0.2}
RELATIVE_SCALES = {"embed": 0.1, "shared": 0.1, "relative": 2.0, "Dense": 0.3, "": 0.4}
SLOTS = "cannot take a prepared cache, 4-D mask and position_ids|does not honour tree masks and position_ids"
#: What cannot be driven, and the words of the refusal that say why.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "LED": ("LEDConfig", {**TABLE, "attention_window": 8}, SLOTS),
    "ProphetNet": ("ProphetNetConfig", {**COMMON, "hidden_size": 32, "decoder_ffn_dim": 48}, SLOTS),
    "FSMT": (
        "FSMTConfig",
        {**TABLE, "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["a", "b"]},
        SLOTS,
    ),
    "Switch": ("SwitchTransformersConfig", {**RELATIVE, "num_experts": 2}, "experts of limited capacity"),
    "BigBird-Pegasus, sparse": ("BigBirdPegasusConfig", TABLE, "leaves sparse attention for good"),
    "Marian, two vocabularies": (
        "MarianConfig",
        {**TABLE, "decoder_vocab_size": 70, "share_encoder_decoder_embeddings": False},
        "reads 61 token ids and writes 70; source and output need one vocabulary",
    ),
}


def build(config: str, options: dict[str, Any], seed: int = 0, **changes: Any) -> Any:
    """A seeded random model in float32 whose attention is strong enough for its texts to depend on the source."""
    torch.manual_seed(seed)
    module = AutoModelForSeq2SeqLM.from_config(getattr(transformers, config)(**{**options, **changes})).float().eval()
    scales = RELATIVE_SCALES if "d_kv" in options else SCALES
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1 and weight.requires_grad:  # sinusoids are as they are
                weight.normal_(0, next((scale for part, scale in scales.items() if part in name), scales[""]))
    return module


def written(module: Any, source: list[int], count: int, **options: Any) -> list[int]:
    """What transformers generates greedily behind the decoder's start token."""
    config = GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        decoder_start_token_id=START,
        pad_token_id=PAD,
        eos_token_id=module.generation_config.eos_token_id,
        **options,
    )
    ids = torch.tensor([source], device=module.device)
    return module.generate(ids, generation_config=config, attention_mask=torch.ones_like(ids))[0, 1:].tolist()
