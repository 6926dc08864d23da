"""Compiles `kernels.c` with the machine's own C compiler, once a machine, and loads it."""

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

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
_PATIENCE = 60.0


class Unavailable(Exception):
    """There are no native kernels on this machine; the message says why."""


def load() -> ctypes.CDLL:
    """The compiled kernels, from the cache folder or compiled there now (half a second).

    Raises:
        Unavailable: switched off, not Linux, no C compiler, or it failed.
    """
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0")
    if sys.platform != "linux":
        raise Unavailable(f"they are built on Linux only, and this is {sys.platform}")
    compiler = _compiler()
    path = _folder() / f"kernels-{_fingerprint(compiler)}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        # PyTorch has loaded its OpenMP library by now; the loader finds it by its name, so the threads are shared.
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise Unavailable(f"{compiler} failed: {said.strip().splitlines()[-1]}") from error


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
    try:
        cpu = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model", "flags"))}
    except OSError:
        cpu = set()
    parts = [_SOURCE.read_bytes(), version, platform.machine().encode(), *(line.encode() for line in sorted(cpu))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(_FLAGS).encode()])).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
        # Whoever else compiles at the same time makes the same file.
        made.replace(path)
