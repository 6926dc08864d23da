"""Compiles the C files of this folder with the machine's own C compiler, once a machine, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Where compiled kernels are kept; by default in the user's cache folder.
FOLDER = "PACELINE_CACHE"
#: "0" leaves the compiler alone.
SWITCH = "PACELINE_NATIVE"

_UNITS = ("bytes.c", "compact.c", "kernels.c", "layout.c", "matrix.c", "small.c", "tiles.c", "widened.c")
_NAMES = (*_UNITS, "compact.h", "lanes.h", "panels.h")
_SOURCES = tuple(Path(__file__).with_name(name) for name in _NAMES)
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_PATIENCE = 60.0
_DIGEST = hashlib.sha256().digest_size


class Unavailable(Exception):
    """There are no native kernels on this machine; the message says why."""


def load() -> ctypes.CDLL:
    """The compiled kernels, from the cache folder or compiled there now (half a second).

    Where nothing can be kept or run from the cache folder, they are compiled for this process alone.

    Raises:
        Unavailable: switched off, not Linux, no C compiler, or it failed.
    """
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0")
    if sys.platform != "linux":
        raise Unavailable(f"they are built on Linux only, and this is {sys.platform}")
    compiler = _compiler()
    try:
        try:
            return _kept(compiler)
        except (OSError, RuntimeError):  # read-only, full, mounted without execution, or there is no home folder
            return _private(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        raise Unavailable(f"{compiler} failed: {said.splitlines()[-1]}") from error


def _kept(compiler: str) -> ctypes.CDLL:
    """From the cache folder, where whoever else compiles at the same time puts the same file."""
    path = _folder() / f"kernels-{_fingerprint(compiler)}.so"
    if not _whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _compile(compiler, Path(folder) / path.name).replace(path)
    # PyTorch has loaded its OpenMP library by now; the loader finds it by its name, so the threads are shared.
    return ctypes.CDLL(str(path))


def _private(compiler: str) -> ctypes.CDLL:
    """From a folder that is gone again once the library is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(_compile(compiler, Path(folder) / "kernels.so")))


def _compiler() -> str:
    asked = os.environ.get("CC")
    found = next((path for name in (asked, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if found is None:
        raise Unavailable("there is no C compiler (cc, gcc or clang)")
    return found


def _folder() -> Path:
    base = os.environ.get(FOLDER)
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def _fingerprint(compiler: str) -> str:
    """Of everything that the compiled code depends on: a home folder may be shared by different machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_PATIENCE).stdout
    named = ("model", "flags", "CPU", "Features")  # the last two on ARM
    try:
        cpu = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(named)}
    except OSError:
        cpu = set()
    sources = [path.read_bytes() for path in _SOURCES]
    parts = [*sources, version, platform.machine().encode(), *(line.encode() for line in sorted(cpu))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(_FLAGS).encode()])).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> Path:
    """Writes the library and behind it, where the loader does not look, the digest that `_whole` compares."""
    units = [str(source) for source in _SOURCES if source.suffix == ".c"]
    command = [compiler, *_FLAGS, *units, "-o", str(path), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
    code = path.read_bytes()
    path.write_bytes(code + hashlib.sha256(code).digest())
    return path


def _whole(path: Path) -> bool:
    """Whether a library is there as it was written: to load a part of one would end the process."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]
