"""Sizes as people write them, what objects hold, and tensors watched as they come and go."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paceline.errors import BadRequest, Unsupported
from paceline.memory.footprint import measure
from paceline.memory.held import held
from paceline.memory.sizes import in_bytes, is_size, shown
from paceline.memory.watch import Watch
from paceline.models.loading import load_model
from tests.drafters.support import llama
from tests.models import seq2seq
from tests.models.architectures import SUPPORTED, build


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (1, 1),
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("512 mib", 512 << 20),
        ("512M", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("0.5GiB", 1 << 29),
        ("2k", 2000),
    ],
)
def test_sizes_are_read(size: object, wanted: int) -> None:
    assert is_size(size)
    assert in_bytes("memory", size) == wanted


@pytest.mark.parametrize("size", [0, -1, "0MiB", "MiB", "5 parsecs", "1.2.3GB", "-5MiB", None, 2.5, True, "nan"])
def test_other_sizes_are_refused(size: object) -> None:
    with pytest.raises(BadRequest, match=r"memory: .* such as 512MiB or 1.5GB, more than 0, are needed"):
        in_bytes("memory", size)


def test_specs_are_no_sizes() -> None:
    assert not any(is_size(value) for value in ("specmemo(cap=1GiB)", "", None, 1.0, True))


@pytest.mark.parametrize(
    ("size", "wanted"), [(512, "512 bytes"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (5 << 29, "2.50 GiB")]
)
def test_sizes_are_shown(size: int, wanted: str) -> None:
    assert shown(size) == wanted


def test_each_storage_is_held_once() -> None:
    whole = torch.zeros(100)
    table = np.zeros((4, 5))
    module = nn.Linear(3, 2)
    assert held([whole, whole[10:20], {"view": whole.view(10, 10)}]) == 400
    assert held(table, [table[1:], table.T]) == 160
    assert held(module, nn.ModuleList([module])) == 4 * (6 + 2)
    assert held("text", 3, None, [1, 2]) == 0


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_holds_its_weights_however_they_are_laid_out(fast: bool) -> None:
    module = llama(layers=2)
    plain = sum(part.nbytes for part in {id(p): p for p in module.parameters()}.values())
    found = held(load_model(module, fast=fast))
    assert plain <= found < 2 * plain  # panels are filled up, and there is a table of positions


def test_files_mapped_into_memory_are_not_held(tmp_path: object) -> None:
    np.save(f"{tmp_path}/table.npy", np.zeros(1000))
    assert held(np.load(f"{tmp_path}/table.npy", mmap_mode="r")) == 0


def test_tensors_are_watched_from_their_first_use_to_their_end() -> None:
    given = torch.ones(250)
    with Watch() as watch:
        a = torch.zeros(1000)
        assert watch.live == 4000
        b = a + 1
        c = b[:10]
        assert watch.live == 8000
        del b
        assert watch.live == 8000
        del c
        assert (watch.live, watch.peak) == (4000, 8000)
        assert watch.restart() == 4000
        a += given.mean()
        gc.collect()
        assert watch.live == 5000
    del a
    assert watch.live == 1000


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build("MambaConfig", {}), "it keeps other states than keys and values"),
        (lambda: seq2seq.build(*seq2seq.SUPPORTED["T5"][:2]), "it has an encoder"),
    ],
)
def test_what_cannot_be_foretold_is_refused(model: Callable[[], Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=f"memory: what .* needs cannot be foretold, since {reason}; leave memory="):
        measure(load_model(model()))


@pytest.mark.parametrize("name", ["Mistral, window", "DeepSeek-V3", "GPT-2", "Gemma 3"])
def test_other_architectures_are_measured(name: str) -> None:
    subject = load_model(build(*SUPPORTED[name]))
    found = measure(subject)
    assert found.slot > 0
    assert found.node > 4 * subject.vocab_size
