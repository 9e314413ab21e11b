"""Streaming in bounded memory, in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_memory_stays_flat_under_a_limit():
    """The benchmark with a log of twice the limit instead of ten times; more memory would be refused to the process."""
    script = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--limit-mb", "800", "--times", "2"]
    out = subprocess.run(script, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
