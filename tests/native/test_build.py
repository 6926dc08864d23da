"""Compiling once a machine, and doing without: every way in which it can go wrong ends in PyTorch's operations."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from models.architectures import SUPPORTED
from models.architectures import build as random_model

from paceline import Engine, native
from paceline.native import build
from paceline.native.build import Unavailable, load

COMPILERS = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are built on Linux only")

#: Loads the kernels as another process would, without PyTorch's seconds.
ALONE = f"""
import runpy
library = runpy.run_path({build.__file__!r})["load"]()
library.rms_norm, library.rotate, library.attend
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once, for compilers that only pretend."""
    if not COMPILERS:
        pytest.skip("there is no C compiler")
    return build._compile(build._compiler(), tmp_path_factory.mktemp("made") / "kernels.so")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.setenv(build.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has not looked for kernels yet; afterwards it knows what it knew."""
    monkeypatch.setattr(native, "_loaded", cache(native._loaded.__wrapped__))


class Compiler:
    """A shell script that stands in for the C compiler, in its own folder."""

    def __init__(self, folder: Path, body: str) -> None:
        self.path, self.calls = folder / "fake-cc", folder / "calls"
        script = f'if [ "$1" = --version ]; then echo 1.0; exit; fi\necho "$@" >> {self.calls}\n{body}\n'
        self.path.write_text(f"#!/bin/sh\n{script}")
        self.path.chmod(0o755)

    @property
    def count(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def counting(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """A compiler that gives the compiled kernels at once, and counts."""
    copy = f'while [ "$1" != -o ]; do shift; done\ncp {library} "$2"'
    compiler = Compiler(tmp_path, copy)
    monkeypatch.setenv("CC", str(compiler.path))
    return compiler


def failing(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler(folder, body)
    monkeypatch.setenv("CC", str(compiler.path))
    return compiler


def works(library: ctypes.CDLL) -> bool:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    wanted = torch.tensor([[3.0, 8.0]]) / 12.5**0.5
    return torch.allclose(native.Kernels(library).rms_norm(x, weight, 0.0), wanted)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def greedy() -> list[list[int]]:
    """Texts of a small float32 model in its fastest form."""
    engine = Engine.load(random_model(*SUPPORTED["Qwen3"]), drafter="ngram(confidence=0)", fast=True)
    return [engine.generate(prompt, max_new_tokens=24).tokens for prompt in ([7], [5, 9, 5, 9, 5], list(range(2, 40)))]


@pytest.fixture
def broken(folder: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """A cache folder in which nothing can be put."""
    if request.param == "a file in its place":
        folder.write_text("in the way")
    elif request.param == "below a file":
        folder.write_text("in the way")
        request.getfixturevalue("monkeypatch").setenv(build.FOLDER, str(folder / "deeper"))
    else:
        folder.mkdir(mode=0o500)
    yield
    folder.chmod(0o700)


def test_it_can_be_switched_off(
    folder: Path, counting: Compiler, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.SWITCH, "0")
    with pytest.raises(Unavailable, match=r"^PACELINE_NATIVE=0$"):
        load()
    assert native.kernels() is None
    assert native.reason() == "PyTorch's: PACELINE_NATIVE=0"
    assert not counting.count
    assert not folder.exists()


def test_other_systems_are_named(folder: Path, counting: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    with pytest.raises(Unavailable, match="this is sunos5"):
        load()
    assert not counting.count


def test_without_a_compiler_pytorch_is_used(
    folder: Path, tmp_path: Path, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native.kernels() is None
    assert native.reason() == "PyTorch's: there is no C compiler (cc, gcc or clang)"


@needs_compiler
def test_a_compiler_that_cannot_be_found_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = build._compiler()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert Path(build._compiler()).name in ("cc", "gcc", "clang")
    monkeypatch.setenv("CC", found)
    assert build._compiler() == found


@needs_compiler
def test_the_real_compiler_makes_working_kernels(folder: Path) -> None:
    assert works(load())
    assert len(kept(folder)) == 1


@needs_compiler
def test_the_second_load_does_not_compile_again(folder: Path, counting: Compiler, forgotten: None) -> None:
    assert works(load())
    before = [(path, path.stat().st_mtime_ns) for path in kept(folder)]
    assert works(load())
    assert native.kernels() is not None
    assert native.reason() == "native, compiled for this machine"
    assert counting.count == 1
    assert [(path, path.stat().st_mtime_ns) for path in kept(folder)] == before
    assert len(before) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "echo 'kernels.c: in function dot'; echo first >&2; echo 'error: no such thing' >&2; exit 1",
            "error: no such thing",
        ),
        ("printf 'Fehler: ung\\374ltig\\n' >&2; exit 1", "Fehler: ung\ufffdltig"),
        ("echo >&2; exit 3", "exit status 3."),
        ("kill -9 $$", "SIGKILL"),
        ("exit 0", "No such file or directory"),
    ],
    ids=["message", "message in Latin-1", "empty message", "killed", "nothing made"],
)
def test_a_compiler_that_fails_is_quoted(
    folder: Path, tmp_path: Path, body: str, said: str, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = failing(tmp_path, body, monkeypatch)
    assert native.kernels() is None
    assert native.reason().startswith(f"PyTorch's: {compiler.path} failed: ")
    assert said in native.reason()
    assert "first" not in native.reason()
    assert kept(folder) == []


def test_a_compiler_that_cannot_be_run_is_quoted(
    folder: Path, tmp_path: Path, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = failing(tmp_path, "", monkeypatch)
    compiler.path.write_bytes(b"\x7fELF, but not really")
    assert native.kernels() is None
    assert "Exec format error" in native.reason()


def test_a_compiler_that_hangs_is_given_up(
    folder: Path, tmp_path: Path, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(tmp_path, "exec sleep 30", monkeypatch)
    monkeypatch.setattr(build, "_PATIENCE", 0.2)
    assert native.kernels() is None
    assert "timed out after 0.2 seconds" in native.reason()


@needs_compiler
def test_text_is_the_same_where_the_compiler_fails(
    folder: Path, tmp_path: Path, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(tmp_path, "exit 1", monkeypatch)
    without = greedy()
    assert native.kernels() is None
    native._loaded.cache_clear()
    monkeypatch.delenv("CC")
    assert greedy() == without
    assert native.kernels() is not None


@needs_compiler
@pytest.mark.parametrize("broken", ["a file in its place", "below a file", "no permission"], indirect=True)
def test_where_nothing_can_be_kept_it_is_compiled_for_this_process(
    broken: None, counting: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert works(load())
    assert counting.count == 1
    assert kept(temporary) == []


@needs_compiler
def test_a_user_without_a_home_folder_is_served(counting: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (build.FOLDER, build.SWITCH, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert works(load())
    assert counting.count == 1


def test_where_nothing_can_be_written_at_all_pytorch_is_used(
    folder: Path, counting: Compiler, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(folder / "nowhere"))
    assert native.kernels() is None
    assert "Not a directory" in native.reason()


@needs_compiler
@pytest.mark.parametrize("length", [0, 20, 5000, -2000, -1])
def test_a_damaged_library_is_compiled_anew(folder: Path, counting: Compiler, library: Path, length: int) -> None:
    """To load a part of one ends the process (a bus error), so it is tried in another one."""
    name = f"kernels-{build._fingerprint(build._compiler())}.so"
    whole = build._compile(build._compiler(), library.with_name("whole.so")).read_bytes()
    folder.mkdir()
    (folder / name).write_bytes(whole[:length])
    subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True)
    assert (folder / name).read_bytes() == whole
    assert counting.count == 2


@needs_compiler
def test_a_changed_library_is_compiled_anew(folder: Path, counting: Compiler) -> None:
    name = f"kernels-{build._fingerprint(build._compiler())}.so"
    folder.mkdir()
    whole = bytearray(build._compile(build._compiler(), folder / name).read_bytes())
    whole[len(whole) // 2] ^= 1
    (folder / name).write_bytes(whole)
    assert works(load())
    assert counting.count == 2


def test_another_source_flag_or_compiler_is_another_library(
    counting: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = [build._fingerprint(str(counting.path)) for _ in range(2)]
    assert prints[0] == prints[1]
    with monkeypatch.context() as changed:
        changed.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
        prints.append(build._fingerprint(str(counting.path)))
    read = Path.read_bytes
    with monkeypatch.context() as changed:
        changed.setattr(Path, "read_bytes", lambda path: read(path) + b"\n" * (path.name == "kernels.c"))
        prints.append(build._fingerprint(str(counting.path)))
    counting.path.write_text("#!/bin/sh\necho 2.0\n")
    prints.append(build._fingerprint(str(counting.path)))
    assert len(set(prints)) == 4


@needs_compiler
def test_processes_and_threads_may_compile_at_once(folder: Path, counting: Compiler) -> None:
    counting.path.write_text(counting.path.read_text().replace("\ncp ", "\nsleep 0.2\ncp "))
    others = [subprocess.Popen([sys.executable, "-c", ALONE]) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: works(load()), range(3)))
    assert [process.wait() for process in others] == [0, 0, 0]
    assert len(kept(folder)) == 1
    assert counting.count > 1
