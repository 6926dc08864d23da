"""Memory for weights in huge pages."""

from __future__ import annotations

import gc
import mmap
import platform
import threading
import weakref

import psutil
import pytest
import torch

from paceline.native import pages
from paceline.native.pages import ALIGNMENT, CHUNK, Pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_copy_has_the_same_numbers_in_a_row(dtype: torch.dtype) -> None:
    x = torch.arange(-60, 60).view(4, 5, 6).to(dtype).transpose(0, 2)
    copy = Pages().copy(x)
    assert copy.shape == x.shape
    assert copy.is_contiguous()
    assert torch.equal(copy, x)


def test_tensors_do_not_overlap() -> None:
    source = Pages()
    tensors = [source.empty((n,), torch.float32).fill_(n) for n in (1, 1500, 3, 70_000, 0, 5)]
    assert all(bool((x == len(x)).all()) for x in tensors)
    assert all(x.data_ptr() % ALIGNMENT == 0 for x in tensors if len(x))


def test_tensors_larger_than_a_chunk_have_one_of_their_own() -> None:
    source = Pages()
    small, large = source.empty((7,), torch.int8), source.empty((CHUNK + 1,), torch.int8)
    large[-1], small[0] = 3, 4
    assert (int(large[-1]), int(small[0])) == (3, 4)


def test_threads_get_memory_of_their_own() -> None:
    source, found = Pages(), []

    def take(number: int) -> None:
        found.extend((number, source.empty((100,), torch.float32).fill_(number)) for _ in range(50))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({x.data_ptr() for _, x in found}) == 200
    assert all(bool((x == number).all()) for number, x in found)


def test_a_chunk_is_freed_with_the_last_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chunk(mmap.mmap):
        """One that can be watched."""

    monkeypatch.setattr(pages, "_mapped", lambda size: Chunk(-1, size))
    source = Pages()
    first, second = source.empty((10,), torch.int8), source.empty((10,), torch.int8)
    assert source._chunk is not None
    chunk = weakref.ref(source._chunk)
    del source, first
    gc.collect()
    assert chunk() is not None
    second.fill_(1)
    del second
    gc.collect()
    assert chunk() is None


@pytest.mark.parametrize("lacking", ["advice", "space"])
def test_without_huge_pages_the_memory_is_pytorchs(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    if lacking == "advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:

        def refuse(size: int) -> mmap.mmap:
            raise OSError("no memory")

        monkeypatch.setattr(pages, "_mapped", refuse)
    x = torch.randn(3, 4)
    assert torch.equal(Pages().copy(x), x)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_goes_back_to_the_system() -> None:
    process, blocks = psutil.Process(), [torch.zeros(1 << 14) for _ in range(2000)]
    full = process.memory_info().rss
    last = blocks[-1]  # the heap ends here
    del blocks
    pages.trim()
    assert full - process.memory_info().rss > 100 << 20
    assert not last.any()
