"""The exact Gaussian process of one user, or of a padded block of users. Source: Nguyen et al., SIGIR 2014 (GPFM)."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.gp.covariance import cholesky


def masked(matrix: Tensor, mask: Tensor) -> Tensor:
    """`matrix` [..., n, n] with rows and columns of padding made those of the identity: they then change nothing."""
    both = mask[..., :, None] & mask[..., None, :]
    return torch.where(both, matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype))


def negative_log_likelihood(factor: Tensor, residual: Tensor) -> Tensor:
    """0.5 log|K_y| + 0.5 r^T K_y^-1 r, the constant n/2 log(2 pi) left out.

    factor: the Cholesky factor of K_y = K + sigma^2 I, [..., n, n]; residual r [..., n], 0 at padding. Returns [...].
    """
    whitened = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
    half_determinant: Tensor = torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
    likelihood: Tensor = half_determinant + 0.5 * whitened.square().sum(-1)
    return likelihood


def noisy_factor(between: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """The Cholesky factor of K + sigma^2 I. between: K [..., n, n]; noise: sigma [...]; mask: true rows [..., n]."""
    one = torch.eye(between.shape[-1], dtype=between.dtype)
    noisy = between + noise.square()[..., None, None] * one
    return cholesky(masked(noisy, mask), noise.square() + between.diagonal(dim1=-2, dim2=-1).mean(-1), jitter=0.0)


def posterior(factor: Tensor, residual: Tensor, cross: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (without the mean function) and variance (without the noise) at new rows.

    factor: of K_y [..., n, n]; residual r [..., n]: targets minus mean function minus biases; cross: k(new, trained)
    [..., t, n]; own: k(new, new) [..., t]. Returns two [..., t]. (The public code forgets to take the biases off r;
    they must be.)
    """
    alpha = torch.cholesky_solve(residual[..., None], factor)
    explained = torch.linalg.solve_triangular(factor, cross.mT, upper=False).square().sum(-2)
    return (cross @ alpha)[..., 0], own - explained
