"""GPFM: each user is a Gaussian process with its own covariance over shared item and context vectors.

Source: Nguyen, Karatzoglou and Baltrunas, "Gaussian Process Factorization Machines for Context-aware
Recommendations", SIGIR 2014, and the authors' public code, whose objective this is. There is no vector for a user.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.gp.config import ModelConfig
from paceline.gp.covariance import covariance
from paceline.gp.encode import UNSEEN, Rows, Vocabulary
from paceline.gp.exact import negative_log_likelihood, noisy_factor, posterior
from paceline.gp.models import Layout, Model, average_biases, entities, leaves, look_up
from paceline.gp.users import Block, blocks, groups


class Gpfm(Model):
    """The model on its training rows. Latent vectors start uniform in [0, start), means and biases at averages."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, rows: Rows, seed: int) -> None:
        self.config, self.rows, users = config, rows, len(vocabulary.users)
        self.layout = Layout.of(vocabulary, config.dim, config.context_dim)
        self.entities = entities(rows, self.layout)
        self.blocks = blocks(rows.user, int(torch.bincount(rows.user).max()) * self.layout.width)
        draw = torch.Generator().manual_seed(seed)
        found = average_biases(rows, self.layout, users)
        found = {name: torch.zeros_like(value) for name, value in found.items() if name not in ("bias", "bias.user")}
        for name, size in self.layout.tables.items():
            table = torch.rand(size, self.layout.dims[name], generator=draw, dtype=torch.float64)
            found[f"x.{name}"] = config.start * table
        total, count = (
            torch.bincount(rows.user, rows.rating, minlength=users),
            torch.bincount(rows.user, minlength=users),
        )
        found["mean"] = total / count
        for name in ("length", "amplitude", "noise"):
            found[f"log_{name}"] = torch.full((users,), float(getattr(config, name))).log()
        self.parameters = leaves(found)

    def batches(self, users: int | None, order: torch.Generator | None) -> list[Block]:
        if users is None:
            return self.blocks
        parts = [(block, start) for block in self.blocks for start in range(0, len(block.users), users)]
        chosen = torch.randperm(len(parts), generator=order).tolist()
        return [parts[n][0].part(parts[n][1], min(parts[n][1] + users, len(parts[n][0].users))) for n in chosen]

    def _inputs(self, rows: Rows, place: Tensor) -> Tensor:
        """The inputs of rows `place` [...]: [..., Q]. A value that training never saw is the average of its block."""
        found = []
        for name, index in (self.entities if rows is self.rows else entities(rows, self.layout)).items():
            table = self.parameters[f"x.{name}"]
            found.append(look_up(table, index[place], table.detach().mean(0)))
        return torch.cat([*found, rows.reals[place].nan_to_num(0.0)], -1)

    def _mean(self, rows: Rows, place: Tensor) -> Tensor:
        p = self.parameters
        mean = look_up(p["mean"], rows.user[place], p["mean"].detach().mean())
        mean = mean + rows.reals[place].nan_to_num(0.0) @ p["slope"]
        for name, index in entities(rows, self.layout).items():
            mean = mean + look_up(p[f"bias.{name}"], index[place], 0.0)
        return mean

    def _between(self, users: Tensor, x: Tensor, y: Tensor) -> Tensor:
        p = self.parameters
        return covariance(self.config.covariance, x, y, p["log_length"][users].exp(), p["log_amplitude"][users].exp())

    def _solved(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """(Cholesky factors [U, N, N], residuals [U, N], inputs [U, N, Q]) of users."""
        x = self._inputs(self.rows, block.rows)
        residual = (self.rows.rating[block.rows] - self._mean(self.rows, block.rows)) * block.mask
        noise = self.parameters["log_noise"][block.users].exp()
        return noisy_factor(self._between(block.users, x, x), noise, block.mask), residual, x

    def loss(self, batch: Block) -> Tensor:
        """The users' negative log likelihoods, without the constant."""
        factor, residual, _ = self._solved(batch)
        return negative_log_likelihood(factor, residual).sum()

    @torch.no_grad()
    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        p = self.parameters
        mean = self._mean(rows, torch.arange(len(rows))).clone()
        prior = (2 * p["log_amplitude"]).exp().mean() + (2 * p["log_noise"]).exp().mean()
        variance = torch.where(rows.user == UNSEEN, prior, torch.zeros_like(mean))
        for block in self.blocks:
            asked = groups(rows.user, block)
            if not asked.mask.any():
                continue
            factor, residual, x = self._solved(block)
            new = self._inputs(rows, asked.rows)
            cross = self._between(block.users, new, x) * block.mask[:, None, :]
            own = self._between(block.users, new, new).diagonal(dim1=-2, dim2=-1)
            more, spread = posterior(factor, residual, cross, own)
            spread = spread + (2 * p["log_noise"][block.users]).exp()[:, None]
            mean[asked.rows[asked.mask]] += more[asked.mask]
            variance[asked.rows[asked.mask]] += spread[asked.mask]
        return mean, variance
