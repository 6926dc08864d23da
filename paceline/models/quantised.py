"""A model's matrices in 8 or 4 bits, for passes whose numbers need not be exact: drafts.

A pass over a few tokens is bound by reading the weights, so half or a quarter of the bytes is close to half or a
quarter of the time. Norms, rotation, softmax and residual sums stay in float32; keys and values are laid out as the
target's, so a quantised pass reads and extends the target's own cache.

- 8 bits: `W[o, i] ~ s[o] q[o, i]`, q from -127 to 127, one scale an output. The activations of a pass are rounded to
  8 bits too, by a scale for each token (by PyTorch's kernel: by one for all of them).
- 4 bits: `W[o, i] ~ s[o, g] (q[o, i] - 8) + z[o, g]`, q from 0 to 15, a scale and an offset for each group g of 32
  inputs. The head stays at 8 bits: its rows compete with one another, and rounding decides close ones.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.errors import Unsupported
from paceline.models.causal import CausalModel
from paceline.models.fusable import fusable
from paceline.models.fused import FusedDecoder
from paceline.models.packing import OneDNN
from paceline.native import Kernels, kernels
from paceline.native.pages import WEIGHTS

#: Inputs that share a scale, and a multiple of the outputs, of 4-bit matrices.
GROUP, TILE = 32, 16
#: Outputs of a panel of `Bytes`; `WIDE` in `bytes.c`.
PANEL = 32
_ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("none", ""): lambda x: x,
    ("swish", ""): F.silu,
    ("gelu", "none"): F.gelu,
    ("gelu", "tanh"): lambda x: F.gelu(x, approximate="tanh"),
    ("relu", ""): F.relu,
}


class _Quantised:
    """What the fused forward pass asks of a matrix, on a product `[R, in]` to `[R, out]` in float32.

    Attributes:
        nbytes: bytes it occupies.
        least: fewest rows that are multiplied.
    """

    nbytes: int
    least: int = OneDNN.least

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def times(self, x: Tensor, activation: str = "none", algorithm: str = "") -> Tensor:
        """The product and an activation."""
        return _ACTIVATIONS[activation, algorithm](self.product(x))

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """The product "add"ed to, or "mul"tiplied by, `other` `[R, out]`."""
        product = self.product(x)
        return product.add_(other) if operation == "add" else product.mul_(other)


class Int8(_Quantised):
    """`[out, in]` in 8 bits, laid out by PyTorch."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        with warnings.catch_warnings():
            # The dtype is on its way out of PyTorch; the kernel that takes it has no successor on a CPU yet.
            warnings.simplefilter("ignore")
            zero = torch.zeros(len(weight), dtype=torch.int64)
            rounded = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.float())
        self.nbytes = weight.numel() + 4 * len(weight)
        # Without the instructions that add up in 32 bits, full 8-bit activations would overflow.
        self._reduced = not torch.cpu._is_vnni_supported()

    def product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self._packed, self._reduced)
        return product


class Bytes(_Quantised):
    """`[out, in]` in 8 bits, in panels for the native kernel (`bytes.c`)."""

    least = 1

    def __init__(self, native: Kernels, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.float()
        self._out, inputs = weight.shape
        self._inputs = inputs + -inputs % 4
        scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        rounded = (weight / scales[:, None]).round_().to(torch.int8)
        self._sums, self._scales = rounded.sum(1, dtype=torch.int32), scales
        padded = F.pad(rounded, (0, -inputs % 4, 0, -self._out % PANEL))
        self._panels = WEIGHTS.copy(padded.view(-1, PANEL, self._inputs // 4, 4).transpose(1, 2))
        self._bias = None if bias is None else bias.float()
        self.nbytes = self._panels.nbytes + 4 * self._out
        self._run = native.library.bytes_product
        self._run.argtypes = [c_void_p, c_int64, *[c_void_p] * 6, c_int64, c_int64, c_int64, c_int]
        self._run.restype = None

    def product(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        out, room = torch.empty(len(x), self._out), torch.zeros(len(x), self._inputs, dtype=torch.uint8)
        tensors = (room, self._panels, self._sums, self._scales, self._bias, out)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        sizes = (len(x), self._inputs, self._out, torch.get_num_threads())
        self._run(x.data_ptr(), x.shape[1], *pointers, *sizes)
        return out


def eight_bits(weight: Tensor, bias: Tensor | None) -> _Quantised:
    """`[out, in]` in 8 bits for the fastest kernel at hand."""
    native = kernels()
    if native is not None and native.library.bytes_available():
        return Bytes(native, weight, bias)
    return Int8(weight, bias)


class Int4(_Quantised):
    """`[out, in]` in 4 bits; sizes are padded to whole groups and tiles."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._out, inputs = weight.shape
        self._missing = -inputs % GROUP
        padded = F.pad(weight.float(), (0, self._missing, 0, -self._out % TILE))
        groups = padded.view(len(padded), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-12)
        rounded = ((groups - low) / scale).round_().clamp_(0, 15).int().view_as(padded)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rounded, 2)
        self._scales = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous()
        self._bias = None if bias is None else bias.float()
        self.nbytes = self._packed.nbytes + self._scales.nbytes

    def product(self, x: Tensor) -> Tensor:
        x = F.pad(x.float(), (0, self._missing)) if self._missing else x.float()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self._packed, GROUP, self._scales)
        product = product[:, : self._out]
        return product if self._bias is None else product + self._bias


def quantised(model: CausalModel, bits: int) -> CausalModel:
    """The model with a quantised forward pass, for the same cache; its own forward pass is left as it is.

    Args:
        model: on a CPU, of the Llama family.
        bits: 8 or 4.

    Raises:
        Unsupported: another architecture or device, or this build of torch lacks the kernels.
    """
    other = copy.copy(model)
    own: Any = getattr(model.forward, "quantised", None)
    other.forward = own(bits) if own is not None else _fused(model, bits)
    other.nbytes = getattr(other.forward, "nbytes", model.nbytes)
    return other


def _fused(model: CausalModel, bits: int) -> FusedDecoder:
    source = model.forward
    if not isinstance(source, FusedDecoder):
        reason = fusable(model.module)
        if reason is not None:
            raise Unsupported(f"{model.name} cannot be quantised for drafting: {reason}")
        source = FusedDecoder(model.module, keep=True)
    body = eight_bits if bits == 8 else Int4
    try:
        return source.replaced(lambda weight, bias, head: eight_bits(weight, bias) if head else body(weight, bias))
    except (RuntimeError, AttributeError) as error:
        raise Unsupported(
            f"{model.name} cannot be quantised for drafting: this build of torch or this CPU lacks the "
            f"{bits}-bit product ({str(error).splitlines()[0]})"
        ) from error
