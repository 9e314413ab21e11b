"""Adagrad that knows what its gradients missed (McMahan and Streeter, NIPS 2014).

    H. B. McMahan, M. Streeter: Delay-Tolerant Algorithms for Asynchronous Distributed Online Learning, NIPS 2014

A gradient g that was computed on old parameters overlaps with the gradients that were applied between its read and its
application; b is their sum. Adagrad's sum of squares does not see that they push the same way. With the running sum of
all applied gradients s, of which a pull brings the value along and a push gives it back, b = s - (s at the read), and

    z += g^2 + 2 g b;   top = max(top, z);   s += g
    w -= lr g / sqrt(top)                                              element by element
    w += (lr / sqrt(top before) - lr / sqrt(top)) b                    with `revise`

The last line gives the steps that were taken meanwhile the rate that they would have had, had the overlap been known.
With it this is AdaptiveRevision, up to the value that z and top start from. Nothing missed: it is Adagrad, bit for bit.

Updates of several gradients (ours). With a_k, part k's share of the update's gradient g = sum of a_k, and b_k what it
missed of earlier updates, z += g^2 + 2 sum of a_k b_k: the same as part after part, each missing the parts before it.
`revise` takes the mean of b_k by their shares, which is part after part where all missed the same.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from paceline.kernels import optimizers as kernels
from paceline.kernels import rows
from paceline.params.sparse import Clock, Floats, SparseOptimizer, six
from paceline.params.swap import OptionError


class Late:
    """overlap = sum of a_k b_k and missed = mean of b_k (see above) of an update's rows, float32 [m, width] each."""

    def __init__(self, rows: int, width: int) -> None:
        self.overlap, self.missed = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.float32)
        # `rows.add_part` counts along; what is counted has been counted.
        self._spare = np.zeros(rows, np.float64), np.zeros(rows, np.float64)
        self._ages = np.zeros(64, np.int64)

    def add(self, place: tuple[Any, ...], gradients: Floats, behind: Floats, how: tuple[Any, ...]) -> None:
        """A part's rows, cut and weighed by the rule that its gradients are. behind: b_k, float32 [n, width]; place,
        how: the arguments of `rows.add_part` before and behind the gradients."""
        rows.add_part(*place, gradients * behind, *how, self._ages, self.overlap, *self._spare)
        counts, share, token, limit, _, _, law, _ = how
        plain = (counts, share, token, limit, rows.GLOBAL_MEAN, 1.0, law[:0], rows.ON_GRADIENT)
        rows.add_part(*place, behind, *plain, self._ages, self.missed, *self._spare)

    def finish(self, rule: int, kept: npt.NDArray[np.float64]) -> Late:
        """The sums by the rule of the update. kept float64 [m]: the shares that each row kept."""
        rows.finish_sums(rule, self.overlap, kept)
        rows.finish_sums(rows.PER_ID_MEAN, self.missed, kept)
        return self


class DelayAware(SparseOptimizer):
    """A row optimizer whose last `width` slots are the running sum of the gradients that it applied.

    That sum travels with every pull and push (a float32 for each weight, each way), of rows and of dense parameters.
    """

    @abstractmethod
    def update_late(
        self, weights: Floats, slots: Floats, grads: Floats, overlap: Floats, missed: Floats, clock: Clock
    ) -> None:
        """`update`, given overlap = sum of a_k b_k and missed = mean of b_k (see above), like weights [n, width]."""

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        nothing = np.zeros_like(grads)
        self.update_late(weights, slots, grads, nothing, nothing, clock)


@dataclass(frozen=True)
class AdagradDelay(DelayAware):
    """Delay-aware Adagrad. Slots of a row: z, top, s, each of its width.

    initial: above 0, where z and top start; there is no epsilon. revise: see above. Raises OptionError (a ValueError).
    """

    lr: float = 0.02
    initial: float = 1e-6
    revise: bool = True
    kind: ClassVar[int] = kernels.ADAGRAD_DELAY

    def __post_init__(self) -> None:
        if not float(np.finfo(np.float32).tiny) <= self.initial <= float(np.finfo(np.float32).max):
            raise OptionError("initial", self.initial, "must be above 0: it is what stands for an epsilon")

    def slots(self, width: int) -> int:
        return 3 * width

    def slot_start(self, width: int) -> Floats:
        return np.repeat(np.array([self.initial, self.initial, 0.0], np.float32), width)

    def update_late(
        self, weights: Floats, slots: Floats, grads: Floats, overlap: Floats, missed: Floats, clock: Clock
    ) -> None:
        width = weights.shape[1]
        z, top, applied = slots[:, :width], slots[:, width : 2 * width], slots[:, 2 * width :]
        lr, before = np.float32(self.lr), np.sqrt(top)
        z += grads * grads + np.float32(2) * overlap
        np.maximum(top, z, out=top)
        applied += grads
        weights -= lr * grads / np.sqrt(top)
        if self.revise:
            weights += (lr / before - lr / np.sqrt(top)) * missed

    def hyper(self) -> Floats:
        return six(self.lr, float(self.revise))
