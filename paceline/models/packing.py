"""Packed weights for linear layers on a CPU.

oneDNN multiplies by a matrix that was laid out for it 1.4 to 1.9 times as fast as by a plain one, and its kernel has
a second property on which exactness in bfloat16 rests: **a row's result does not depend on how many rows there are**,
from 2 rows on. One row alone takes another kernel (slower, and other last bits), so few rows are padded to five (on
a Zen 4 five are 5 % faster than four where memory is slow, and equal where it is fast).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

#: The fewest rows that are multiplied, and what the weights are laid out for.
ROWS = 5
_LAID_OUT_FOR = 4

DTYPES = (torch.bfloat16, torch.float32)
linear_pointwise = torch.ops.mkldnn._linear_pointwise.default


def unpackable(weight: Tensor) -> str | None:
    """Why this weight cannot be packed on this machine, or None."""
    if weight.device.type != "cpu":
        return f"weights are on {weight.device}, packing is for cpu"
    if weight.dtype not in DTYPES:
        return f"weights are {weight.dtype}, packing is for bfloat16 and float32"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch lacks oneDNN"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no bfloat16 support in oneDNN (AVX512 needed)"
    return None


def pack(weight: Tensor) -> Tensor:
    """An opaque copy of `[out, in]` for oneDNN; `.to_dense()` gives the same bits back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _LAID_OUT_FOR)


def packed_bytes(weight: Tensor) -> int:
    """Bytes a packed matrix occupies (blocks are padded, so a little more than the plain one)."""
    return int(torch.ops.mkldnn._nbytes(weight))


class PackedLinear(nn.Module):
    """A linear layer with a packed weight.

    Under autograd the weight is unpacked for the call, so gradients flow to the input (there are none for the
    weight). The weight is no parameter: it is in no `state_dict` and `.to()` leaves it alone; undo the packing first.

    Args:
        weight: `[out, in]`, bfloat16 or float32 on a CPU; copied.
        bias: `[out]` or None.
        transposed: `.weight` is `[in, out]`, as in GPT-2's `Conv1D`.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None, transposed: bool = False) -> None:
        super().__init__()
        self.packed = pack(weight.t() if transposed else weight)
        self.bias, self.transposed = bias, transposed
        self.out_features, self.in_features = self.packed.shape

    @property
    def weight(self) -> Tensor:
        """The plain weight, unpacked anew at each access."""
        dense = self.packed.to_dense()
        return dense.t().contiguous() if self.transposed else dense

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, of the weight's dtype."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.packed.to_dense(), self.bias)
        bias = None if self.bias is None else self.bias.detach()
        rows = x.numel() // self.in_features
        if rows >= ROWS:
            return linear_pointwise(x, self.packed, bias, "none", [], "")
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, ROWS - rows))
        return linear_pointwise(padded, self.packed, bias, "none", [], "")[:rows].view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@dataclass
class Packed:
    """What `pack_linears` did.

    Attributes:
        layers: `{name: the original layer}`, its weight emptied unless something else uses it.
        skipped: `{name: why}` of linear layers that were left alone.
        nbytes: bytes of all packed weights.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    _restore: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the original layers back, with the same weights bit for bit, one after the other."""
        while self._restore:
            self._restore.pop()()
        self.layers, self.nbytes = {}, 0


def pack_linears(module: nn.Module) -> Packed:
    """Replace every `nn.Linear` (and GPT-2's `Conv1D`) of a loaded model by a `PackedLinear`.

    Memory does not double: each weight is released as soon as it is packed, so the peak is one matrix above the
    model's size. The exception is a weight that something else reads too: an output layer tied to the embedding
    table is packed, and the table stays beside it.

    Args:
        module: changed in place.

    Returns:
        A record that can `undo()`. Layers of another type, dtype or device are left alone and listed with the reason.
    """
    users: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    record = Packed()
    for name, layer in list(_linears(module)):
        reason = unpackable(layer.weight)
        if reason is not None:
            record.skipped[name] = reason
        else:
            _replace(module, name, layer, users[id(layer.weight)] > 1, record)
    return record


def _linears(module: nn.Module) -> Iterator[tuple[str, Any]]:
    # Subclasses (quantised, adapters) do more than multiply.
    return ((name, layer) for name, layer in module.named_modules() if name and type(layer) in (nn.Linear, Conv1D))


def _replace(module: nn.Module, name: str, layer: Any, shared: bool, record: Packed) -> None:
    transposed = isinstance(layer, Conv1D)
    packed = PackedLinear(layer.weight, layer.bias, transposed).train(layer.training)
    parent = module.get_submodule(name.rpartition(".")[0])
    if not shared:
        release(layer.weight)
    setattr(parent, name.rpartition(".")[2], packed)
    record.layers[name] = layer
    record.nbytes += packed_bytes(packed.packed)

    def restore() -> None:
        if not shared:
            layer.weight.data = packed.weight
        setattr(parent, name.rpartition(".")[2], layer)

    record._restore.append(restore)


def release(parameter: nn.Parameter) -> None:
    """Let go of a parameter's storage but keep the parameter, so that it can be filled again."""
    parameter.data = parameter.data.new_empty(0)
