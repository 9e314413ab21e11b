"""The variational bound of one user's Gaussian process over uncertain inputs, and its predictions.

Source: Titsias and Lawrence, AISTATS 2010, for each user; a reconstruction of GPLVMF (Huang and Xu, 2019), whose
literal equations are not known to us. Blocks of users are batched; rows and inducing inputs may be padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.gp.covariance import JITTER, ard, cholesky
from paceline.gp.exact import masked
from paceline.gp.psi import psi1, psi2_rows, symmetric


@dataclass(frozen=True, slots=True)
class Process:
    """Users' processes: ARD weights w [Q], signal variances s^2 [...], noise precisions beta [...], inducing inputs z
    [..., m, Q], which of them are real [..., m], and the first jitter on K_ZZ (of s^2)."""

    weights: Tensor
    variance: Tensor
    precision: Tensor
    z: Tensor
    real: Tensor
    jitter: float = JITTER

    def psi1(self, mu: Tensor, s: Tensor) -> Tensor:
        """[..., n, m], 0 at inducing inputs that are padding."""
        return psi1(mu, s, self.weights, self.variance, self.z) * self.real[..., None, :]

    def psi2(self, mu: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        """Summed over the rows of `mask` [..., n]: [..., m, m], 0 at inducing inputs that are padding."""
        rows = psi2_rows(mu, s, self.weights, self.variance, self.z)
        pairs = (mask[..., None, :].to(rows.dtype) @ rows)[..., 0, :]
        return symmetric(pairs, self.z.shape[-2]) * (self.real[..., :, None] & self.real[..., None, :])

    def factor(self) -> Tensor:
        """The Cholesky factor of K_ZZ, the identity at padding."""
        between = ard(self.z, self.z, self.weights, self.variance)
        return cholesky(masked(between, self.real), self.variance, self.jitter)


@dataclass(frozen=True, slots=True)
class Solved:
    """What the bound and predictions share, in the basis where K_ZZ is the identity.

    lower: L of K_ZZ = L L^T; inner: L_B of B = I + beta L^-1 Psi2 L^-T (so C = L B L^T); whitened: L^-1 Psi2 L^-T;
    solved: beta L_B^-1 L^-1 Psi1^T r, [..., m].
    """

    lower: Tensor
    inner: Tensor
    whitened: Tensor
    solved: Tensor


def solve(process: Process, mu: Tensor, s: Tensor, residual: Tensor, mask: Tensor) -> Solved:
    """Condition on rows. mu, s: [..., n, Q]; residual r [..., n], 0 at padding; mask: true rows [..., n]."""
    lower = process.factor()
    half = torch.linalg.solve_triangular(lower, process.psi2(mu, s, mask), upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.mT, upper=False)
    one = torch.eye(lower.shape[-1], dtype=lower.dtype)
    inner = cholesky(one + process.precision[..., None, None] * whitened, torch.ones_like(process.precision), 0.0)
    projected = (process.psi1(mu, s).mT @ residual[..., None]) * process.precision[..., None, None]
    projected = torch.linalg.solve_triangular(lower, projected, upper=False)
    return Solved(lower, inner, whitened, torch.linalg.solve_triangular(inner, projected, upper=False)[..., 0])


def bound(process: Process, mu: Tensor, s: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
    """F of each user [...], a lower bound of log p(r) without the KL term:

        n/2 log beta - n/2 log 2 pi + 0.5 log|K_ZZ| - 0.5 log|C| - beta/2 r^T r + beta^2/2 r^T Psi1 C^-1 Psi1^T r
        - beta/2 psi0 + beta/2 tr(K_ZZ^-1 Psi2),      C = beta Psi2 + K_ZZ,  psi0 = n s^2

    Arguments as in `solve`. With s = 0 and all rows as inducing inputs it is the exact log marginal likelihood.
    """
    found = solve(process, mu, s, residual, mask)
    n, beta = mask.sum(-1), process.precision
    fit = 0.5 * (found.solved.square().sum(-1) - beta * residual.square().sum(-1))
    determinant = torch.log(found.inner.diagonal(dim1=-2, dim2=-1)).sum(-1)
    unexplained = n * process.variance - found.whitened.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * n * (torch.log(beta) - math.log(2 * math.pi)) - determinant + fit - 0.5 * beta * unexplained


def predict(process: Process, found: Solved, mu: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (without the mean function) and variance (without the noise) at uncertain new rows.

    mu, s: [..., t, Q]. With g = beta C^-1 Psi1^T r the mean is psi1* g, and the variance
    s^2 - tr(K_ZZ^-1 psi2*) + tr(C^-1 psi2*) + g^T psi2* g - (psi1* g)^2. Returns two [..., t].
    """
    m = process.z.shape[-2]
    inner_solved = torch.linalg.solve_triangular(found.inner.mT, found.solved[..., None], upper=True)
    g = torch.linalg.solve_triangular(found.lower.mT, inner_solved, upper=True)  # [..., m, 1]
    mean = (process.psi1(mu, s) @ g)[..., 0]
    one = torch.eye(m, dtype=mu.dtype).expand_as(found.lower)
    inverse = torch.cholesky_solve(one, found.lower)
    product = torch.cholesky_solve(one, found.lower @ found.inner)
    real = process.real[..., :, None] & process.real[..., None, :]
    form = (product - inverse + g @ g.mT) * real
    first, second = torch.triu_indices(m, m)
    twice = torch.where(first == second, 1.0, 2.0).to(mu.dtype)
    rows = psi2_rows(mu, s, process.weights, process.variance, process.z)
    second_moment = (rows @ (form[..., first, second] * twice)[..., None])[..., 0]
    return mean, (process.variance[..., None] + second_moment - mean.square()).clamp_min(0.0)
