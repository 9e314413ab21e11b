"""How much a gradient weighs that was computed on old parameters.

    power      max(1, s) ** (-1 / k)      k = 2: 1 / sqrt(s); k = 1: `inverse`
    log        1 / (1 + log_k(1 + s))
    relative   min(1, k * N / s)          N: live workers
    inverse    1 / max(1, s)
    none       1

s: updates applied between the pull and the application of the gradient. Source: staleness normalisation of Liu and
Zhao, AAAI 2021; its Eq. 4 is not known to us, `power` with k = 2 is our reading, the others are candidates (our note
on staleness, section 3.1). No law is "Eq. 4 of the paper".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from paceline.errors import PaceError

Law = Literal["power", "log", "relative", "inverse", "none"]
Of = Literal["gradient", "row"]
Scales = Literal["gradient", "step"]
LEAST = 0.25  # of k: below it, weights become zeros in float32


@dataclass(frozen=True, slots=True)
class Weight:
    """A law, its parameter k, whose staleness decides for embedding rows, and what is multiplied.

    rows: "gradient": a row's gradient weighs what the whole gradient weighs; "row": each row by its own staleness, the
    number of updates that this row had since it was pulled: one that nobody changed keeps its full weight (ours).
    scales: "gradient": the gradient, before the optimizer (the paper's way, as we read it); "step": the optimizer's
    step, after it. An optimizer that divides by what gradients usually measure (Adagrad, Adam) takes a weight that is
    always about the same out of the gradient again, but not out of the step (ours).
    """

    law: Law = "power"
    k: float = 2.0
    rows: Of = "gradient"
    scales: Scales = "gradient"

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise PaceError(f"weight: law is {self.law!r}, but must be one of {', '.join(get_args(Law))}")
        if not (self.k > 1.0 if self.law == "log" else self.k >= LEAST) or self.k == math.inf:
            least = "above 1" if self.law == "log" else f"of at least {LEAST:g}"
            raise PaceError(f"weight: k is {self.k!r}, but must be a finite number {least}")
        if self.rows not in get_args(Of):
            raise PaceError(f"weight: rows is {self.rows!r}, but must be one of {', '.join(get_args(Of))}")

        if self.scales not in get_args(Scales):
            raise PaceError(f"weight: scales is {self.scales!r}, but must be one of {', '.join(get_args(Scales))}")

    def factor(self, staleness: int, workers: int) -> float:
        """The weight in (0, 1] of a gradient that is `staleness` updates old, with `workers` live workers. What is not
        stale (0) weighs 1 under every law."""
        s = max(staleness, 0)
        match self.law:
            case "power":
                return float(max(1, s) ** (-1.0 / self.k))
            case "log":
                return 1.0 / (1.0 + math.log(1 + s, self.k))
            case "relative":
                return min(1.0, self.k * max(workers, 1) / s) if s else 1.0
            case "inverse":
                return 1.0 / max(1, s)
            case "none":
                return 1.0
