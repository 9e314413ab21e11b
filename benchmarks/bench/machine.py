"""What the machine is: the numbers beside which a rate means something."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


def describe() -> dict[str, Any]:
    """Processor, cores, caches, memory, versions, and how busy it is now (so that a disturbed run can be told)."""
    told: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "numpy")},
        "load": [round(load, 2) for load in os.getloadavg()],
    }
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        facts = dict(line.split(":", 1) for line in cpu.read_text().split("\n\n")[0].splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        told["processor"] = f"{facts.get('model name', told['processor'])}, model {facts.get('model', '?')}"
        flags = facts.get("flags", "").split()
        told["instructions"] = [flag for flag in FLAGS if flag in flags]
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        told[f"L{level} {kind.lower()}"] = size
    if hasattr(os, "sysconf"):
        told["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return told


def as_text(told: dict[str, Any]) -> str:
    """The description as Markdown lines."""
    return "\n".join(f"- {key}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in told.items())


def commit(root: Path) -> str:
    """Of the code that is measured, with a + if it was changed since; "" outside a repository."""
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def command() -> str:
    """What was typed."""
    return shlex.join(["python", "-m", "benchmarks.bench", *sys.argv[1:]])
