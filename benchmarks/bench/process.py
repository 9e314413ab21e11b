"""A system's process, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.systems.worker import Setup

ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """A system's process ended or answered nonsense; the text has the end of what it printed."""


def python_of(env: str, peers: Path) -> Path:
    """The interpreter of an environment: "" is this one."""
    return Path(sys.executable) if not env else peers / env / "bin" / "python"


class Process:
    """Starts `module` in its environment and prepares it for `setup`. `ready`: versions; `left_out`: why, or ""."""

    def __init__(self, python: Path, module: str, setup: Setup, errors: Path) -> None:
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        threads = {name: str(setup.threads) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
        self._errors = errors
        with errors.open("w") as stderr:
            self._child = subprocess.Popen(
                [str(python), "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            )
        self.ready: dict[str, str] = {}
        self.left_out = ""
        try:
            first = self._ask(asdict(setup))
        except BaseException:
            self.close()
            raise
        self.ready, self.left_out = first.get("ready", {}), first.get("left_out", "")

    def train(self, steps: int) -> tuple[float, list[float]]:
        """(seconds, [loss of the first quarter, of the last]) of `steps` batches."""
        answer = self._ask({"steps": steps})
        return float(answer["seconds"]), list(answer["losses"])

    def close(self) -> None:
        """End it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._child.wait()
            tail = self._errors.read_text(errors="replace").strip().splitlines()[-5:]
            raise Failed(f"ended with {self._child.returncode}: " + " | ".join(tail))
        answer: dict[str, Any] = json.loads(line)
        return answer
