"""Packed weights for linear layers on a CPU.

A matrix that was laid out for the kernel multiplies few rows two to three times as fast as a plain one. There are two
layouts: our own for bfloat16 where the CPU suits it (`paceline.native.matrix`), else oneDNN's. Both have the property
on which exactness in bfloat16 rests: **a row's result does not depend on how many rows there are**; with oneDNN from
2 rows on. There one row alone takes another kernel (slower, and other last bits), so few rows are padded to five (on a
Zen 4 five are 5 % faster than four where memory is slow, and equal where it is fast). In bfloat16 on matrix units (AMX)
oneDNN lacks it: only matrices that do not suit our own layout are left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paceline.native import kernels
from paceline.native.compact import CompactPanels
from paceline.native.matrix import Panels

DTYPES = (torch.bfloat16, torch.float32)
#: Bytes of weights from which a pass reads them from memory; fewer may stay in a cache.
FROM_MEMORY = 64 << 20
_LAID_OUT_FOR = 4
_product = torch.ops.mkldnn._linear_pointwise.default
_combined = torch.ops.mkldnn._linear_pointwise.binary


class OneDNN:
    """A matrix `[out, in]` in oneDNN's layout, and its bias.

    Attributes:
        least: fewest rows that may be multiplied.
        spare: further rows that cost next to nothing beside one.
        shape: (out, in).
        nbytes: bytes it occupies (blocks are filled up, so a little more than the plain one).
    """

    least, spare = 5, 5

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.shape = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAID_OUT_FOR)
        self._bias = None if bias is None else bias.detach()
        self.nbytes = int(torch.ops.mkldnn._nbytes(self._packed))

    def times(self, x: Tensor, activation: str = "none", algorithm: str = "") -> Tensor:
        """`[R, in]` to `[R, out]`, with the bias, then the activation, by oneDNN's names."""
        return _product(x, self._packed, self._bias, activation, [], algorithm)

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """The product "add"ed to, or "mul"tiplied by, `other` `[R, out]`."""
        return _combined(x, other, self._packed, self._bias, operation)

    def dense(self) -> Tensor:
        """`[out, in]`, the same bits."""
        return self._packed.to_dense()


def pack(
    weight: Tensor, bias: Tensor | None = None, activation: str = "none", compact: bool = False
) -> OneDNN | Panels:
    """A copy of `[out, in]` in the layout that is fastest here.

    Args:
        activation: that its products may take, by oneDNN's name.
        compact: it is read from memory in every pass, so fewer bytes are less time.
    """
    weight, native = weight.detach(), kernels()
    for layout in (CompactPanels, Panels) if compact else (Panels,):
        if native is not None and layout.suits(native, weight, activation):
            return layout(native, weight, bias)
    return OneDNN(weight, bias)


def unpackable(weight: Tensor, activation: str = "none") -> str | None:
    """Why this weight cannot be packed on this machine with what its products may take (see `pack`), or None."""
    if weight.device.type != "cpu":
        return f"weights are on {weight.device}, packing is for cpu"
    if weight.dtype not in DTYPES:
        return f"weights are {weight.dtype}, packing is for bfloat16 and float32"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch lacks oneDNN"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        native = kernels()
        if native is None or not Panels.suits(native, weight, activation):
            return "this CPU has no bfloat16 support in oneDNN (AVX512 needed), and no native kernel suits"
    return None


class PackedLinear(nn.Module):
    """A linear layer with a packed weight.

    Under autograd the weight is unpacked for the call, so gradients flow to the input (there are none for the
    weight). The weight is no parameter: it is in no `state_dict` and `.to()` leaves it alone; undo the packing first.

    Args:
        weight: `[out, in]`, bfloat16 or float32 on a CPU; copied.
        bias: `[out]` or None.
        transposed: `.weight` is `[in, out]`, as in GPT-2's `Conv1D`.
        shown: `.weight` has numbers. Without them it says shape and dtype, which is all that some modules want to know
            of it in every pass, and unpacks nothing.
        compact: as in `pack`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        transposed: bool = False,
        shown: bool = True,
        compact: bool = False,
    ) -> None:
        super().__init__()
        self.packed = pack(weight.t() if transposed else weight, bias, compact=compact)
        self.bias, self.transposed = bias, transposed
        self._stand_in = None if shown else weight.detach().to("meta")
        self.out_features, self.in_features = self.packed.shape

    @property
    def weight(self) -> Tensor:
        """The plain weight, unpacked anew at each access; a tensor without numbers where it is not shown."""
        return self._plain() if self._stand_in is None else self._stand_in

    def _plain(self) -> Tensor:
        dense = self.packed.dense()
        return dense.t().contiguous() if self.transposed else dense

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, of the weight's dtype."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.packed.dense(), self.bias)
        rows = x.reshape(-1, self.in_features)
        count, spare = len(rows), max(0, self.packed.least - len(rows))
        out = self.packed.times(F.pad(rows, (0, 0, 0, spare)) if spare else rows)[:count]
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@dataclass
class Packed:
    """What `pack_linears` did.

    Attributes:
        layers: `{name: the original layer}`, its weight emptied unless something else uses it.
        skipped: `{name: why}` of linear layers that were left alone.
        nbytes: bytes of all packed weights.
        saved: bytes that a pass need not read any more.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    saved: int = 0
    _restore: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the original layers back, with the same weights bit for bit, one after the other."""
        while self._restore:
            self._restore.pop()()
        self.layers, self.nbytes, self.saved = {}, 0, 0


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
    record, found = Packed(), list(_linears(module))
    compact = sum(layer.weight.nbytes for _, layer in found) >= FROM_MEMORY
    for name, layer in found:
        reason = unpackable(layer.weight)
        if reason is not None:
            record.skipped[name] = reason
        else:
            _replace(module, name, layer, users[id(layer.weight)] > 1, compact, record)
    return record


def _linears(module: nn.Module) -> Iterator[tuple[str, Any]]:
    # Subclasses (quantised, adapters) do more than multiply.
    return ((name, layer) for name, layer in module.named_modules() if name and type(layer) in (nn.Linear, Conv1D))


def _replace(module: nn.Module, name: str, layer: Any, shared: bool, compact: bool, record: Packed) -> None:
    transposed = isinstance(layer, Conv1D)
    parent = module.get_submodule(name.rpartition(".")[0])
    shown, plain = not _only_asks(parent), layer.weight.nbytes
    packed = PackedLinear(layer.weight, layer.bias, transposed, shown, compact).train(layer.training)
    if not shared:
        release(layer.weight)
    setattr(parent, name.rpartition(".")[2], packed)
    record.layers[name] = layer
    record.nbytes += packed.packed.nbytes
    record.saved += max(0, plain - packed.packed.nbytes)

    def restore() -> None:
        if not shared:
            layer.weight.data = packed._plain()
        setattr(parent, name.rpartition(".")[2], layer)

    record._restore.append(restore)


def _only_asks(parent: nn.Module) -> bool:
    """Whether a module's pass looks at the dtype of its layers' weights, as T5's feed-forward blocks do."""
    code = getattr(inspect.unwrap(type(parent).forward), "__code__", None)
    names = set() if code is None else set(code.co_names)
    return {"weight", "dtype"} <= names and not names & {"functional", "F", "linear", "matmul"}


def release(parameter: nn.Parameter) -> None:
    """Let go of a parameter's storage but keep the parameter, so that it can be filled again."""
    parameter.data = parameter.data.new_empty(0)
