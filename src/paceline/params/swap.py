"""SWAP: optimizers whose sums of squares forget by sampling period (Liu and Zhao, AAAI 2021).

In plain Adagrad the sum of squares grows for ever and steps vanish. A discount per update would repair that, but weighs
samples by their order of arrival. So squares add up with equal weight inside a period, and at its end the sum is
multiplied once by `decay`. Periods are counted in samples applied, hence they mean the same in every pace; one clock
serves all rows and dense parameters.

Each row has a period counter. At an update, before the row's square is added:

    now = floor(clock.samples / period)
    lazy (the public AdagradDecay kernels, default)   if now > counter: sums *= decay;           counter += 1
    eager                                             if now > counter: sums *= decay^(now - counter);  counter = now

So a lazy row that rested, or is new, pays what it owes one period per update, and takes larger steps meanwhile. With
`born_current` a new row owes nothing: its counter starts at `now` of its first update. (The counter of a row that is
still to be born is -1.) Counters and counts are float32: exact up to 2^24. They are kept in periods, so a run that is
resumed with another `period` counts them as periods of the new length.

`AdagradSWAP` is AdagradDecay exactly; the decay of its row-wise form, Adam, RMSProp and FTRL is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from paceline.kernels import optimizers as kernels
from paceline.params.sparse import FTRL, Adagrad, Clock, Floats, RowwiseAdagrad, SparseOptimizer, six


class OptionError(ValueError):
    """An option of an optimizer that cannot be; `option` names it."""

    def __init__(self, option: str, value: object, rule: str) -> None:
        super().__init__(f"{option}: {value!r} {rule}")
        self.option = option


def _is_float32_above_0(value: float) -> bool:
    return float(np.finfo(np.float32).tiny) <= value <= float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Swap(SparseOptimizer):
    """The period clock. Slots of a row: m or z (if the optimizer has one), sums, their count (if any), counter.

    decay: rho in (0, 1], the part of the sums that outlives a period; the memory is 1 / (1 - decay) periods.
    period: in samples, above 0. Set it to a quarter of a day's samples; a run shorter than it never decays. The default
    is a quarter of a day of 40 million samples.
    eager: pay all that is owed at once. born_current: a new row owes nothing.

    Raises OptionError (a ValueError) if one of them cannot be.
    """

    decay: float = 0.8
    period: float = 10_000_000
    eager: bool = False
    born_current: bool = False

    def __post_init__(self) -> None:
        if not (_is_float32_above_0(self.decay) and self.decay <= 1):
            raise OptionError("decay", self.decay, "must be above 0 and at most 1")
        if not 0 < self.period < float("inf"):
            raise OptionError("period", self.period, "must be a number of samples above 0")

    def periods(self, clock: Clock) -> int:
        # In whole numbers or float64, never float32: samples pass 2^24 within minutes.
        return int(clock.samples // self.period)

    def _slot_start(self, sums: Floats) -> Floats:
        return np.append(sums, np.float32(-1 if self.born_current else 0))

    def _hyper(self, *values: float) -> Floats:
        return six(*values, *([0.0] * (4 - len(values))), self.decay, float(self.eager))

    def _owed(self, slots: Floats, clock: Clock) -> Floats | None:
        """By what the rows' sums are to be multiplied, float32 [n, 1], 1 where nothing is owed; None: nowhere.

        Moves the counters on.
        """
        counter, now = slots[:, -1:], self.periods(clock)
        counter[counter < 0] = now
        owed: npt.NDArray[np.int64] = np.maximum(now - counter.astype(np.int64), 0)
        if not owed.any():
            return None
        if self.eager:
            counter[owed > 0] = now
            return (np.float64(np.float32(self.decay)) ** owed).astype(np.float32)
        counter += owed > 0
        return np.where(owed > 0, np.float32(self.decay), np.float32(1))


@dataclass(frozen=True)
class AdagradSWAP(Swap):
    """AdagradDecay, as DeepRec and Alibaba PAI publish it, element by element, without epsilon.

    If a period has passed: n = max(decay n, initial). Then n += g^2; w -= lr g / sqrt(n).

    initial: A0 > 0, where n starts and what it never falls below. Gradients are of a batch's mean loss: where their
    squares are far below A0, steps are those of SGD with the rate lr / sqrt(A0).
    """

    lr: float = 0.02
    initial: float = 0.1
    kind: ClassVar[int] = kernels.ADAGRAD_SWAP

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_float32_above_0(self.initial):
            raise OptionError("initial", self.initial, "must be above 0: it is the floor that stands for an epsilon")

    def slots(self, width: int) -> int:
        return width + 1

    def slot_start(self, width: int) -> Floats:
        return self._slot_start(np.full(self.slots(width) - 1, self.initial, np.float32))

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        owed = self._owed(slots, clock)
        if owed is not None:
            sums = slots[:, :-1]
            sums[:] = np.where(owed < 1, np.maximum(owed * sums, np.float32(self.initial)), sums)
        self._step(weights, slots[:, :-1], grads, clock)

    def _step(self, weights: Floats, sums: Floats, grads: Floats, clock: Clock) -> None:
        Adagrad(self.lr, 0.0).update(weights, sums, grads, clock)

    def hyper(self) -> Floats:
        return self._hyper(self.lr, 0.0, self.initial)


@dataclass(frozen=True)
class RowwiseAdagradSWAP(AdagradSWAP):
    """AdagradSWAP with one sum per row (ours).

    If a period has passed: n = max(decay n, initial). Then n += mean(g^2); w -= lr / sqrt(n) * g.
    """

    kind: ClassVar[int] = kernels.ROWWISE_ADAGRAD_SWAP

    def slots(self, width: int) -> int:
        return 2

    def _step(self, weights: Floats, sums: Floats, grads: Floats, clock: Clock) -> None:
        RowwiseAdagrad(self.lr, 0.0).update(weights, sums, grads, clock)


@dataclass(frozen=True)
class AdamSWAP(Swap):
    """Lazy Adam with equal weights inside a period (a reconstruction, ours: the paper's general form is not known).

        if a period has passed     v = decay v; n = decay n
        m = beta1 m + (1 - beta1) g;  v += g^2;  n += 1
        w -= lr m / (1 - beta1^updates) / (sqrt(v / n) + eps)

    v is a sum of squares and n, one number per row, how many it holds, decayed alike; so v / n is their mean and needs
    no correction of bias. m is that of `paceline.params.sparse.Adam`.
    """

    lr: float = 0.001
    beta1: float = 0.9
    eps: float = 1e-8
    kind: ClassVar[int] = kernels.ADAM_SWAP

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= np.float32(self.beta1) < 1:
            raise OptionError("beta1", self.beta1, "must be at least 0 and below 1")

    def slots(self, width: int) -> int:
        return 2 * width + 2

    def slot_start(self, width: int) -> Floats:
        return self._slot_start(np.zeros(2 * width + 1, np.float32))

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        width = weights.shape[1]
        owed = self._owed(slots, clock)
        if owed is not None:
            slots[:, width:-1] *= owed
        b1, one = np.float32(self.beta1), np.float32(1)
        m, v, n = slots[:, :width], slots[:, width : 2 * width], slots[:, -2:-1]
        m[:] = b1 * m + (one - b1) * grads
        v += grads * grads
        n += one
        correct = np.float32(1.0 - float(b1) ** clock.updates)
        weights -= np.float32(self.lr) * (m / correct) / (np.sqrt(v / n) + np.float32(self.eps))

    def hyper(self) -> Floats:
        return self._hyper(self.lr, self.eps, self.beta1)


@dataclass(frozen=True)
class RMSPropSWAP(Swap):
    """RMSProp with equal weights inside a period (a reconstruction, ours: the paper's general form is not known).

        if a period has passed     v = decay v; n = decay n
        v += g^2;  n += 1
        w -= lr g / (sqrt(v / n) + eps)

    v is a sum of squares and n, one number per row, how many it holds, decayed alike.
    """

    lr: float = 0.01
    eps: float = 1e-8
    kind: ClassVar[int] = kernels.RMSPROP_SWAP

    def slots(self, width: int) -> int:
        return width + 2

    def slot_start(self, width: int) -> Floats:
        return self._slot_start(np.zeros(width + 1, np.float32))

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        owed = self._owed(slots, clock)
        if owed is not None:
            slots[:, :-1] *= owed
        v, n = slots[:, :-2], slots[:, -2:-1]
        v += grads * grads
        n += np.float32(1)
        weights -= np.float32(self.lr) * grads / (np.sqrt(v / n) + np.float32(self.eps))

    def hyper(self) -> Floats:
        return self._hyper(self.lr, self.eps)


@dataclass(frozen=True)
class FTRLSWAP(Swap):
    """FTRL-Proximal whose sum of squares forgets by period (a reconstruction, ours: the paper's general form is not
    known). Between decays it is `paceline.params.sparse.FTRL`.

        if a period has passed     n = decay n, and where w != 0:
                                   z = -w ((beta + sqrt(n)) / lr + 2 l2) - sign(w) l1

    The closed form of the new z and n is the same w: a decay by itself moves no weight, it makes later steps larger.
    Where w = 0, |z| <= l1 holds for any n, so z stays. n > 0 never decays to 0, which marks elements without a past.
    """

    lr: float = 0.05
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    kind: ClassVar[int] = kernels.FTRL_SWAP
    closed_form: ClassVar[bool] = True

    def slots(self, width: int) -> int:
        return 2 * width + 1

    def slot_start(self, width: int) -> Floats:
        return self._slot_start(np.zeros(2 * width, np.float32))

    def update(self, weights: Floats, slots: Floats, grads: Floats, clock: Clock) -> None:
        width = weights.shape[1]
        inner = FTRL(self.lr, self.beta, self.l1, self.l2)
        owed = self._owed(slots, clock)
        if owed is not None:
            z, n = slots[:, :width], slots[:, width:-1]
            due = (owed < 1) & (n > 0)
            n[:] = np.where(due, np.maximum(owed * n, kernels.SMALLEST), n)
            z[:] = np.where(due & (weights != 0), inner.dual(weights, n), z)
        inner.update(weights, slots[:, :-1], grads, clock)

    def hyper(self) -> Floats:
        return self._hyper(self.lr, self.beta, self.l1, self.l2)
