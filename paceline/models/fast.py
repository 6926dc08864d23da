"""Which faster, equal forward pass a model gets. Each step is tried, checked against the module, and reversible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline.errors import PacelineError
from paceline.models import attention as attention_interface
from paceline.models.causal import CausalModel
from paceline.models.check import plain_logits, self_check
from paceline.models.fusable import fusable
from paceline.models.fused import FusedDecoder
from paceline.models.packing import pack_linears


def speed_up(model: CausalModel) -> Callable[[], None]:
    """Give a model the fastest forward pass known for it; changes its module in place.

    On a CPU the Llama family runs fused from packed weights; every other architecture keeps its own forward pass with
    packed linear layers and order-independent attention. `model.path` says what was chosen and why not more. On other
    devices the module runs as it is.

    Returns:
        A function that undoes everything, weights bit for bit.
    """
    plain = model.forward
    if model.device.type != "cpu":
        model.path = "the module's own forward pass"
        return lambda: None
    reason = fusable(model.module)
    if reason is None:
        try:
            fused = FusedDecoder(model.module)
        except ValueError as error:  # it checked itself against the module and found a difference
            reason = str(error)
        else:
            spare, saved = model.spare, fused.saved
            model.forward, model.path = fused, "fused forward pass from packed weights"
            model.spare, model.nbytes = fused.spare, model.nbytes - saved

            def unfuse() -> None:
                fused.undo()
                model.forward, model.spare, model.nbytes = plain, spare, model.nbytes + saved

            return unfuse
    undo_attention = _own_attention(model)
    packed = pack_linears(model.module)
    model.nbytes -= packed.saved
    model.path = f"the module's own forward pass, {len(packed.layers)} linear layers packed (not fused: {reason})"

    def undo() -> None:
        model.nbytes += packed.saved
        packed.undo()
        undo_attention()
        model.forward = plain

    return undo


def _own_attention(model: CausalModel) -> Callable[[], None]:
    """Switch a module to order-independent attention over float32 keys, if it still computes the same with it."""
    module, plain = model.module, model.forward
    before, wanted = module.config._attn_implementation, plain_logits(model)

    def undo() -> None:
        module.set_attn_implementation(before)
        model.forward = plain

    try:
        module.set_attn_implementation(attention_interface.NAME)
        own: Any = type(plain)
        forward = own(module)
        forward.kv_dtype = attention_interface.KV_DTYPE
        model.forward = forward
        self_check(model, wanted)
    except (PacelineError, ValueError, KeyError):
        undo()
        return lambda: None
    return undo
