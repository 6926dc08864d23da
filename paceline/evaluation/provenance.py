"""Where and with what a measurement was made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from paceline import __version__

#: Instruction sets that decide how fast a CPU multiplies.
ISA = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")


def provenance(argv: list[str] | None = None) -> dict[str, Any]:
    """Versions, machine and command line."""
    return {
        "paceline": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "isa": isa_flags(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "argv": sys.argv[1:] if argv is None else argv,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """The git commit of the source tree this package is imported from, with `+` when it has changes."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+" if run[1].strip() else "")


def cpu_name() -> str:
    """The CPU as the system names it."""
    for key, value in cpu_info():
        if key in ("model name", "Model"):
            return value
    return platform.processor() or platform.machine()


def isa_flags() -> list[str]:
    """Those of `ISA` that the CPU has."""
    flags = next((value.split() for key, value in cpu_info() if key in ("flags", "Features")), [])
    return [flag for flag in ISA if flag in flags]


def cpu_info() -> list[tuple[str, str]]:
    """Lines of /proc/cpuinfo as pairs; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return [(key.strip(), value.strip()) for key, value in pairs]
