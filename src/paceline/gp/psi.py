"""Psi statistics of the ARD covariance under uncertain inputs, and the Kullback-Leibler term.

A row's input is Gaussian with mean mu_t and diagonal variance S_t (0 where it is known). Source: Titsias and Lawrence,
AISTATS 2010; that GPLVMF uses them is our reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def psi1(mu: Tensor, s: Tensor, weights: Tensor, variance: Tensor, z: Tensor) -> Tensor:
    """E k(x_t, z_a). mu, s: [..., n, Q]; weights: w [Q]; variance: s^2 [...]; z: [..., m, Q]. Returns [..., n, m]."""
    spread = weights * s + 1
    rate = weights / spread  # [..., n, Q]
    # sum_q rate (mu - z)^2, expanded, so that nothing of size n * m * Q is made
    exponent = (rate * mu.square()).sum(-1)[..., None] - 2 * (rate * mu) @ z.mT + rate @ z.square().mT
    return variance[..., None, None] * torch.exp(-0.5 * (torch.log(spread).sum(-1)[..., None] + exponent))


def psi2_rows(mu: Tensor, s: Tensor, weights: Tensor, variance: Tensor, z: Tensor) -> Tensor:
    """E k(x_t, z_a) k(x_t, z_b) of each row, a <= b: [..., n, m (m + 1) / 2], in the order of torch.triu_indices."""
    first, second = torch.triu_indices(z.shape[-2], z.shape[-2])
    a, b = z[..., first, :], z[..., second, :]
    centre = 0.5 * (a + b)  # [..., pairs, Q]
    spread = 2 * weights * s + 1
    rate = weights / spread
    exponent = (rate * mu.square()).sum(-1)[..., None] - 2 * (rate * mu) @ centre.mT + rate @ centre.square().mT
    apart = 0.25 * ((a - b).square() @ weights)  # [..., pairs]
    scale = variance.square()[..., None, None]
    return scale * torch.exp(-0.5 * torch.log(spread).sum(-1)[..., None] - apart[..., None, :] - exponent)


def symmetric(pairs: Tensor, m: int) -> Tensor:
    """The symmetric matrices [..., m, m] of which `pairs` [..., m (m + 1) / 2] holds the upper triangles."""
    first, second = torch.triu_indices(m, m)
    place = torch.empty(m, m, dtype=torch.long)
    place[first, second] = place[second, first] = torch.arange(len(first))
    return pairs[..., place]


def kl(mu: Tensor, log_s: Tensor) -> Tensor:
    """KL from N(mu, diag S) to N(0, I), [...]: 0.5 sum_q (S_q + mu_q^2 - 1 - log S_q). mu, log_s: [..., Q]."""
    return 0.5 * (log_s.exp() + mu.square() - 1 - log_s).sum(-1)
