"""Whether this processor computes in bfloat16 faster than in float32; without instructions for it, it is many times
slower."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_ROWS, _WIDTH = 1024, 256
_TURNS = 3


def layer_speeds() -> tuple[float, float]:
    """(fp32, bf16): GFLOP/s of a linear layer there and back, in bf16 under autocast as models are, by the calling
    thread's number of threads."""
    weight, rows = torch.ones(_WIDTH, _WIDTH, requires_grad=True), torch.ones(_ROWS, _WIDTH, requires_grad=True)
    return _speed(weight, rows, False), _speed(weight, rows, True)


def advice(fp32: float, bf16: float) -> str | None:
    """What to tell a person who trains in bf16 on a processor of these speeds, if it is not worth it."""
    if bf16 >= fp32:
        return None
    return (
        f"precision: bf16 makes the dense part slower here: a linear layer runs at {bf16:,.1f} GFLOP/s, in fp32 at"
        f" {fp32:,.1f} (bf16 pays on processors with AVX512-BF16 or AMX); set precision: fp32"
    )


def warn_of_bf16(precision: str, device: str, note: Callable[[str], None]) -> None:
    """Tell a person whose job asks for bf16 on a CPU that is slower at it."""
    if precision == "bf16" and device == "cpu" and (slow := advice(*layer_speeds())):
        note(slow)


def _speed(weight: torch.Tensor, rows: torch.Tensor, half: bool) -> float:
    taken = []
    for _ in range(_TURNS + 1):  # the first prepares
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = torch.nn.functional.linear(rows, weight)
        torch.autograd.grad(out.float().sum(), [rows, weight])
        taken.append(time.perf_counter() - started)
    return 3 * 2 * _ROWS * _WIDTH**2 / min(taken[1:]) / 1e9
