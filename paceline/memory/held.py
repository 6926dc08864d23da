"""Bytes of all tensors and arrays that objects hold, each storage once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache

#: What is looked into: containers, modules, and objects of this package. Others hold no weights.
_OWN = "paceline."


def held(*roots: object) -> int:
    """Bytes that the objects hold, directly or through others: weights as they are laid out, tables, packed copies.

    Keys and values of texts (`Cache`) and files that are mapped into memory are left out.
    """
    seen: set[int] = set()
    found: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            place, size = _storage(part)
            found[place] = max(size, found.get(place, 0))
        elif isinstance(part, np.ndarray):
            if not isinstance(part, np.memmap):
                owner = _owner(part)
                found[owner.__array_interface__["data"][0]] = owner.nbytes
        else:
            waiting += _inside(part)
    return sum(found.values())


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of what a tensor is a part of; of one cut from a shared mapping, its own alone."""
    if tensor.is_mkldnn:
        return id(tensor), int(torch.ops.mkldnn._nbytes(tensor))
    if tensor.is_meta:
        return 0, 0
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _owner(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _inside(part: object) -> Iterable[Any]:
    if isinstance(part, Cache | type | str | bytes):
        return ()
    if isinstance(part, dict):
        return part.values()
    if isinstance(part, list | tuple | set | frozenset):
        # Long lists are of numbers.
        return part if len(part) < 4096 else ()
    if isinstance(part, nn.Module) or type(part).__module__.startswith(_OWN):
        slots = [getattr(part, name, None) for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())]
        return [*getattr(part, "__dict__", {}).values(), *slots]
    return ()
