"""Covariance functions over latent vectors, and a Cholesky factor that asks for help only when it needs it.

All tensors are fp64. Leading dimensions (users) are batched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.errors import TrainingError

KINDS = ("rbf", "linear", "polynomial")
JITTER = 1e-6
DOUBLINGS = 8


def ard(x: Tensor, y: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
    """Squared exponential with a weight for each coordinate, s^2 exp(-1/2 sum_q w_q (x_q - y_q)^2).

    x: [..., n, Q]; y: [..., m, Q]; weights: w [Q] (one over squared length scales); variance: s^2 [...]. Returns
    [..., n, m].
    """
    squares = (x[..., :, None, :] - y[..., None, :, :]).square()
    return variance[..., None, None] * torch.exp(-0.5 * (squares @ weights))


def covariance(kind: str, x: Tensor, y: Tensor, length: Tensor, amplitude: Tensor) -> Tensor:
    """The covariance of GPFM: `rbf` s^2 exp(-|x-y|^2 / (2 l^2)), `linear` s^2 x.y or `polynomial` s^2 (x.y + 1) / l^2.

    x: [..., n, Q]; y: [..., m, Q]; length l and amplitude s: [...]. Returns [..., n, m]. Source: Nguyen et al., SIGIR
    2014, and its public code (whose linear kinds have no amplitude: s = 1).
    """
    variance = amplitude.square()[..., None, None]
    if kind == "rbf":
        squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
        return variance * torch.exp(-0.5 * squares / length.square()[..., None, None])
    product = x @ y.mT
    if kind == "linear":
        return variance * product
    return variance * (product + 1) / length.square()[..., None, None]


def preference(between: Tensor) -> Tensor:
    """Covariance of pairs "a over b": K((a,b),(c,d)) = k(a,c) + k(b,d) - k(a,d) - k(b,c), that of f(a) - f(b).

    between: k of the rows [..., 2 n, 2 n], the n preferred ones first, each in the order of its pair. Returns [...,
    n, n]. Singular where a pair and its reverse are both there: noise must be added. Source: GPPW (Nguyen et al.,
    SIGIR 2014).
    """
    n = between.shape[-1] // 2
    over, under = between[..., :n, :], between[..., n:, :]
    return over[..., :n] + under[..., n:] - over[..., n:] - under[..., :n]


def cholesky(matrix: Tensor, unit: Tensor, jitter: float = JITTER) -> Tensor:
    """The lower factor of `matrix` + `jitter` * `unit` * I; where that fails, with the jitter doubled up to 8 times.

    matrix: [..., n, n]; unit: [...], the scale of the diagonal. jitter 0: first without any. Raises TrainingError if
    no jitter helps.
    """
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    steps = [jitter, *((jitter or JITTER) * 2.0**k for k in range(1 if jitter else 0, DOUBLINGS + 1))]
    added = torch.full_like(unit, steps[0])
    for step in steps[1:]:
        factor, failed = _factor(matrix + (added * unit)[..., None, None] * one)
        if not failed.any():
            return factor
        added = torch.where(failed > 0, step, added)
    factor, failed = _factor(matrix + (added * unit)[..., None, None] * one)
    if failed.any():
        raise TrainingError(
            f"covariances of {int((failed > 0).sum())} user(s) are not positive definite, even with a jitter of"
            f" {steps[-1]:.1e} of their scale; lower training.lr, or train with another seed"
        )
    return factor


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(lower factors, which failed: 0 where there is none)."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor, failed
