"""GPLVMF: a Gaussian process for each user over latent vectors that are themselves uncertain.

Source: Huang and Xu, "Gaussian Process Latent Variable Model Factorization for Context-aware Recommender Systems",
2019. **A reconstruction** from the abstract and from standard theory (Titsias and Lawrence, 2010): the paper's own
equations are not known to us. Ours are also: latent vectors shared by all users, one ARD weight for each coordinate
shared by all users, users' scales that shrink towards common ones, and biases that are uncertain too (`biases:
deterministic` is what the abstract says).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.gp.bound import Process, bound, predict, solve
from paceline.gp.config import ModelConfig
from paceline.gp.encode import UNSEEN, Rows, Vocabulary
from paceline.gp.models import Layout, Model, average_biases, entities, leaves, look_up
from paceline.gp.psi import kl
from paceline.gp.users import blocks, groups


@dataclass(frozen=True, slots=True)
class Part:
    """Users start to end of a block, and how much of each entity's KL term is counted with them."""

    number: int
    start: int
    end: int
    shares: dict[str, Tensor]


class Gplvmf(Model):
    """The model on its training rows."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, rows: Rows, seed: int) -> None:
        self.config, self.rows, self.users, self.warmth = config, rows, len(vocabulary.users), 1.0
        self.layout = Layout.of(vocabulary, config.dim, config.context_dim)
        self.entities = entities(rows, self.layout)
        m = config.inducing
        self.blocks = blocks(rows.user, min(m, int(torch.bincount(rows.user).max())) ** 2)
        self.parameters = leaves(self._start(torch.Generator().manual_seed(seed)))
        self._holders = {
            name: torch.unique(torch.stack([rows.user, index], 1), dim=0) for name, index in self.entities.items()
        }
        self._whole: list[Part] | None = None

    def begin(self, epoch: int) -> None:
        """While warming up, the KL terms of latent vectors count less, and s stays where it starts: else the bound's
        nearest optimum is often the one in which no process is there at all.
        """
        self.warmth = min(1.0, epoch / self.config.warmup) if self.config.warmup else 1.0

    def _start(self, draw: torch.Generator) -> dict[str, Tensor]:
        rows, config = self.rows, self.config
        found = average_biases(rows, self.layout, self.users)
        spread = 0.5 * (rows.rating.var(unbiased=False).clamp_min(1e-3) if len(rows) > 1 else torch.ones(()))
        for name, size in self.layout.tables.items():
            dim = self.layout.dims[name]
            # As sure of an entity as its ratings make one, and mu^2 + S = 1 on average, as the prior has it.
            count = torch.bincount(self.entities[name], minlength=size)[:, None].double()
            s = (1 / (1 + count)).expand(size, dim)
            found[f"mu.{name}"] = (1 - s).sqrt() * torch.randn(size, dim, generator=draw, dtype=torch.float64)
            found[f"log_s.{name}"] = s.log()
        # Two rows with nothing in common start with a correlation of about exp(-3), however many contexts there are.
        found["log_weights"] = torch.full((self.layout.width,), 3 / self.layout.width).log()
        found["log_amplitude"], found["log_precision"] = 0.5 * spread.log(), -spread.log()
        if config.user_deviation > 0:
            found["amplitude.user"], found["precision.user"] = torch.zeros(self.users), torch.zeros(self.users)
        if config.biases == "variational":
            for name in ("user", *self.layout.tables):
                found[f"log_v.{name}"] = torch.full_like(found[f"bias.{name}"], float(0.2 * spread)).log()
                found[f"log_tau.{name}"] = (0.4 * spread).log() / 2
        self.parameters = {name: value.double() for name, value in found.items()}
        self._real = []
        for number, block in enumerate(self.blocks):
            m = min(config.inducing, block.mask.shape[1])
            keys = torch.rand(block.mask.shape, generator=draw).masked_fill(~block.mask, 2.0)
            picked = block.rows.gather(1, keys.argsort(1)[:, :m])
            found[f"z.{number}"] = self._inputs(self.rows, picked)[0]
            self._real.append(torch.arange(m) < block.mask.sum(1, keepdim=True))
        return found

    def _inputs(self, rows: Rows, place: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of the inputs of the rows `place` [...]: two [..., Q]. A value that training never saw,
        or that is missing, is as uncertain as the prior.
        """
        means, variances = [], []
        for name, index in (self.entities if rows is self.rows else entities(rows, self.layout)).items():
            means.append(look_up(self.parameters[f"mu.{name}"], index[place], 0.0))
            variances.append(look_up(self.parameters[f"log_s.{name}"], index[place], 0.0).exp())
        reals = rows.reals[place]
        return torch.cat([*means, reals.nan_to_num(0.0)], -1), torch.cat([*variances, reals.isnan().double()], -1)

    def _mean(self, rows: Rows, place: Tensor) -> tuple[Tensor, Tensor]:
        """The mean function at rows `place` [...] and its variance (0 with deterministic biases)."""
        p = self.parameters
        mean = p["bias"] + rows.reals[place].nan_to_num(0.0) @ p["slope"]
        variance = torch.zeros_like(mean)
        for name, index in {"user": rows.user, **entities(rows, self.layout)}.items():
            mean = mean + look_up(p[f"bias.{name}"], index[place], 0.0)
            if self.config.biases == "variational":
                prior = 2 * p[f"log_tau.{name}"]
                variance = variance + look_up(p[f"log_v.{name}"], index[place], prior).exp()
        return mean, variance

    def _process(self, number: int, users: Tensor, start: int, end: int) -> Process:
        amplitude, precision = self._scales(users)
        z = self.parameters[f"z.{number}"][start:end]
        return Process(self.parameters["log_weights"].exp(), amplitude, precision, z, self._real[number][start:end])

    def _scales(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """s^2 and beta of users (UNSEEN: the common ones), both [...]."""
        p = self.parameters
        common = p["log_amplitude"].detach() if self.warmth < 1 else p["log_amplitude"]
        amplitude, precision = common.expand(users.shape), p["log_precision"].expand(users.shape)
        if self.config.user_deviation > 0:
            amplitude = amplitude + look_up(p["amplitude.user"], users, 0.0)
            precision = precision + look_up(p["precision.user"], users, 0.0)
        return (2 * amplitude).exp(), precision.exp()

    def batches(self, users: int | None, order: torch.Generator | None) -> list[Part]:
        if users is None:
            self._whole = self._whole or [self._part(n, 0, len(block.users)) for n, block in enumerate(self.blocks)]
            return self._whole
        parts = []
        for number, block in enumerate(self.blocks):
            for start in range(0, len(block.users), users):
                parts.append((number, start, min(start + users, len(block.users))))
        chosen = torch.randperm(len(parts), generator=order).tolist() if order is not None else range(len(parts))
        return [self._part(*parts[index]) for index in chosen]

    def _part(self, number: int, start: int, end: int) -> Part:
        here = torch.zeros(self.users, dtype=torch.bool)
        here[self.blocks[number].users[start:end]] = True
        shares = {}
        for name, pairs in self._holders.items():
            size = self.layout.tables[name]
            among = torch.bincount(pairs[here[pairs[:, 0]], 1], minlength=size)
            shares[name] = among.double() / torch.bincount(pairs[:, 1], minlength=size)
        return Part(number, start, end, shares)

    def loss(self, batch: Part) -> Tensor:
        """Minus the users' bounds, plus their shares of the entities' KL terms, plus what is the users' own."""
        p, deviation = self.parameters, self.config.user_deviation
        block = self.blocks[batch.number].part(batch.start, batch.end)
        process = self._process(batch.number, block.users, batch.start, batch.end)
        mu, s = self._inputs(self.rows, block.rows)
        mean, uncertain = self._mean(self.rows, block.rows)
        residual = (self.rows.rating[block.rows] - mean) * block.mask
        loss = -bound(process, mu, s, residual, block.mask).sum()
        if self.config.biases == "variational":
            loss = loss + 0.5 * (process.precision[:, None] * uncertain * block.mask).sum()
            loss = loss + self._bias_kl("user", block.users).sum()
        if deviation > 0:
            own = p["amplitude.user"][block.users].square() + p["precision.user"][block.users].square()
            loss = loss + 0.5 * own.sum() / deviation**2
        for name, share in batch.shares.items():
            loss = loss + self.warmth * (share @ kl(p[f"mu.{name}"], p[f"log_s.{name}"]))
            if self.config.biases == "variational":
                loss = loss + share @ self._bias_kl(name, slice(None))
        return loss

    def _bias_kl(self, name: str, which: Tensor | slice) -> Tensor:
        """KL from N(b, v) to N(0, tau^2) of each bias: that of b / tau and v / tau^2 to N(0, 1)."""
        p = self.parameters
        log_tau = p[f"log_tau.{name}"]
        scaled = p[f"bias.{name}"][which] * torch.exp(-log_tau)
        return kl(scaled[:, None], (p[f"log_v.{name}"][which] - 2 * log_tau)[:, None])

    @torch.no_grad()
    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        amplitude, precision = self._scales(rows.user)
        mean, variance = self._mean(rows, torch.arange(len(rows)))
        prior = torch.where(rows.user == UNSEEN, amplitude, 0.0)
        mean, variance = mean.clone(), variance + prior + 1 / precision
        for number, block in enumerate(self.blocks):
            asked = groups(rows.user, block)
            if not asked.mask.any():
                continue
            process = self._process(number, block.users, 0, len(block.users))
            mu, s = self._inputs(self.rows, block.rows)
            residual = (self.rows.rating[block.rows] - self._mean(self.rows, block.rows)[0]) * block.mask
            found = solve(process, mu, s, residual, block.mask)
            more, spread = predict(process, found, *self._inputs(rows, asked.rows))
            mean[asked.rows[asked.mask]] += more[asked.mask]
            variance[asked.rows[asked.mask]] += spread[asked.mask]
        return mean, variance

    def importances(self) -> dict[str, list[float]]:
        weights = self.parameters["log_weights"].detach().exp()
        return {name: weights[place].tolist() for name, place in self.layout.places().items()}
