"""Optimizers of embedding rows. Each is its numpy `update`; the built-in ones also have a kernel that does the same.

To write one: subclass `SparseOptimizer`, say how many slot numbers a row needs, and write `update` in numpy (see
docs/extending.md). It then works in every pace, checkpoint and route; a kernel is only a matter of speed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paceline.kernels import optimizers as kernels

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clock:
    """When an update takes place, counted from the start of the run.

    updates: the number of this update, >= 1; one update is one global batch in every pace that promises it.
    samples: samples applied in all updates, this one included: what periods are counted in, whatever the pace.
    """

    updates: int
    samples: int


class SparseOptimizer(ABC):
    """How rows change.

    kind: the number of the built-in kernel, or -1: `update` is called. closed_form: weights are a function of slots,
    so that they cannot go a part of a step only (`Weight.scales`).
    """

    kind: ClassVar[int] = -1
    closed_form: ClassVar[bool] = False

    @abstractmethod
    def slots(self, width: int) -> int:
        """Slot numbers (float32) beside the `width` weights of a row."""

    @abstractmethod
    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        """Change weights [n, width] and slots [n, slots] in place, given grads [n, width]; all float32."""

    def slot_start(self, width: int) -> Floats:
        """What the slots of a new row hold, float32 [slots]."""
        return np.zeros(self.slots(width), np.float32)

    def hyper(self) -> Floats:
        """The built-in kernel's numbers, float32 [6]."""
        return np.zeros(6, np.float32)

    def periods(self, clock: Clock) -> int:
        """Whole decay periods that have passed, for the built-in kernel; 0 for optimizers that know no periods."""
        return 0


def six(*values: float) -> Floats:
    return np.array([*values, *([0.0] * (6 - len(values)))], np.float32)


@dataclass(frozen=True)
class SGD(SparseOptimizer):
    """w -= lr * g"""

    lr: float = 0.01
    kind: ClassVar[int] = kernels.SGD

    def slots(self, width: int) -> int:
        return 0

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        weights -= np.float32(self.lr) * grads

    def hyper(self) -> Floats:
        return six(self.lr)


@dataclass(frozen=True)
class Adagrad(SparseOptimizer):
    """n += g^2; w -= lr * g / (sqrt(n) + eps), element by element (Duchi et al., JMLR 2011)."""

    lr: float = 0.02
    eps: float = 1e-10
    initial: float = 1e-6
    kind: ClassVar[int] = kernels.ADAGRAD

    def slots(self, width: int) -> int:
        return width

    def slot_start(self, width: int) -> Floats:
        return np.full(width, self.initial, np.float32)

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        slots += grads * grads
        weights -= np.float32(self.lr) * grads / (np.sqrt(slots) + np.float32(self.eps))

    def hyper(self) -> Floats:
        return six(self.lr, self.eps)


@dataclass(frozen=True)
class RowwiseAdagrad(SparseOptimizer):
    """One accumulator per row: n += mean(g^2); w -= lr / (sqrt(n) + eps) * g."""

    lr: float = 0.02
    eps: float = 1e-10
    initial: float = 1e-6
    kind: ClassVar[int] = kernels.ROWWISE_ADAGRAD

    def slots(self, width: int) -> int:
        return 1

    def slot_start(self, width: int) -> Floats:
        return np.full(1, self.initial, np.float32)

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        slots += np.mean(grads * grads, axis=1, keepdims=True)
        weights -= np.float32(self.lr) / (np.sqrt(slots) + np.float32(self.eps)) * grads

    def hyper(self) -> Floats:
        return six(self.lr, self.eps)


@dataclass(frozen=True)
class Adam(SparseOptimizer):
    """Lazy Adam: only rows that have a gradient move; the bias correction counts updates (Kingma and Ba, 2015)."""

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    kind: ClassVar[int] = kernels.ADAM

    def slots(self, width: int) -> int:
        return 2 * width

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        width = weights.shape[1]
        b1, b2, one = np.float32(self.beta1), np.float32(self.beta2), np.float32(1)
        m, v = slots[:, :width], slots[:, width:]
        m[:] = b1 * m + (one - b1) * grads
        v[:] = b2 * v + (one - b2) * grads * grads
        correct1 = np.float32(1.0 - float(b1) ** clock.updates)
        correct2 = np.float32(1.0 - float(b2) ** clock.updates)
        weights -= np.float32(self.lr) * (m / correct1) / (np.sqrt(v / correct2) + np.float32(self.eps))

    def hyper(self) -> Floats:
        return six(self.lr, self.eps, self.beta1, self.beta2)


@dataclass(frozen=True)
class RMSProp(SparseOptimizer):
    """v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps), element by element (Tieleman and Hinton, 2012).

    Only rows that have a gradient decay. Names and defaults are torch's.
    """

    lr: float = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    kind: ClassVar[int] = kernels.RMSPROP

    def slots(self, width: int) -> int:
        return width

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        alpha, one = np.float32(self.alpha), np.float32(1)
        slots[:] = alpha * slots + (one - alpha) * grads * grads
        weights -= np.float32(self.lr) * grads / (np.sqrt(slots) + np.float32(self.eps))

    def hyper(self) -> Floats:
        return six(self.lr, self.eps, self.alpha)


@dataclass(frozen=True)
class FTRL(SparseOptimizer):
    """FTRL-Proximal with L1 and L2 (McMahan et al., KDD 2013, algorithm 1, with L2 counted twice as TensorFlow does).

    A row starts from its own first value instead of 0, so that factors of an FM can grow apart: the dual z is set to
    what makes the closed form give that value.
    """

    lr: float = 0.05
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    kind: ClassVar[int] = kernels.FTRL
    closed_form: ClassVar[bool] = True

    def slots(self, width: int) -> int:
        return 2 * width

    def dual(self, weights: Floats, n: Floats | np.float32) -> Floats:
        """The z whose closed form, with sums of squares n (like weights, or one number), is `weights` [n, width]."""
        lr, beta, two = np.float32(self.lr), np.float32(self.beta), np.float32(2)
        strength = (beta + np.sqrt(n)) / lr + two * np.float32(self.l2)
        dual: Floats = -weights * strength - np.sign(weights) * np.float32(self.l1)
        return dual

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        width = weights.shape[1]
        lr, beta, two = np.float32(self.lr), np.float32(self.beta), np.float32(2)
        l1, l2 = np.float32(self.l1), np.float32(self.l2)
        z, n = slots[:, :width], slots[:, width:]
        z[:] = np.where(n == 0, self.dual(weights, np.float32(0)), z)
        grown = n + grads * grads
        z += grads - (np.sqrt(grown) - np.sqrt(n)) / lr * weights
        n[:] = grown
        size = np.abs(z) - l1
        weights[:] = np.where(size <= 0, np.float32(0), -np.sign(z) * size / ((beta + np.sqrt(grown)) / lr + two * l2))

    def hyper(self) -> Floats:
        return six(self.lr, self.beta, self.l1, self.l2)
