"""A row optimizer of one's own in 20 lines. `optimizer: {sparse: {name: my_optimizer:RMSProp, lr: 0.01}}`."""

from dataclasses import dataclass

import numpy as np

from paceline import Clock, SparseOptimizer


@dataclass(frozen=True)
class RMSProp(SparseOptimizer):
    """n = decay n + (1 - decay) g^2; w -= lr g / (sqrt(n) + eps) (Tieleman and Hinton, 2012)."""

    lr: float = 0.01
    decay: float = 0.95
    eps: float = 1e-4

    def slots(self, width: int) -> int:
        return width

    def update(self, weights: np.ndarray, slots: np.ndarray, grads: np.ndarray, clock: Clock) -> None:
        slots[:] = np.float32(self.decay) * slots + np.float32(1 - self.decay) * grads * grads
        weights -= np.float32(self.lr) * grads / (np.sqrt(slots) + np.float32(self.eps))
