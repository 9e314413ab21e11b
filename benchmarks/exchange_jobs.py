"""The models and the click data of `benchmarks/exchange.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paceline.batch import Bag, Batch, Cursor, Ints, Span
from paceline.exchange.cost import Exchange, Load, Plan, Roles
from paceline.exchange.positions import load_of
from paceline.models.base import Inputs, Model
from paceline.models.registry import build_model
from paceline.runtimes.collective import make_plan
from paceline.runtimes.compute import Layout

SAMPLES, VOCABULARY, DIM, HIDDEN = 512, 100_000, 16, [64, 32]
ALPHA = 1.1  # of the power law of ids, as in `paceline synth`
MODELS = ("lr", "fm", "wide_deep", "deepfm", "dcn_v2", "dlrm")
_SPREAD = np.int64(0x9E3779B97F4A7C1)  # odd: ids are scattered over 64 bits as hashed ones are


@dataclass(frozen=True, slots=True)
class Job:
    """A model on `singles` fields with one id each and `bags` that share the rest of `ids` ids a sample."""

    model: str
    ids: int
    singles: int
    bags: int
    alpha: float = ALPHA

    @property
    def dense(self) -> int:
        """Numbers a sample: 13, as in Criteo's data, beside one-hot fields."""
        return 0 if self.bags else 13

    @property
    def inputs(self) -> Inputs:
        return Inputs(tuple(f"f{i}" for i in range(self.singles + self.bags)), self.dense)

    def build(self) -> Model:
        torch.manual_seed(0)
        options: dict[str, Any] = {} if self.model == "lr" else {"dim": DIM}
        if self.model not in ("lr", "fm"):
            options["hidden"] = HIDDEN
        return build_model(self.model, options, self.inputs)

    def layout(self, model: Model) -> Layout:
        return Layout(model.parts(), self.singles, self.bags)

    def plan(self, nodes: int, exchange: Exchange, load: Load | None = None) -> Plan:
        """As a cluster makes it: from its first batch."""
        model, ranks = self.build(), tuple(range(nodes))
        load = load_of(batch_of(self, 0), nodes) if load is None else load
        return make_plan(model, self.layout(model), self.dense, Roles(ranks, ranks), load, exchange)


def draw(rng: np.random.Generator, count: int, field: int, alpha: float) -> Ints:
    """Ids of a field by the power law of `paceline synth`: rank r comes with a probability of about r^-alpha."""
    u = rng.random(count)
    if alpha == 1.0:
        ranks = np.exp(u * math.log(VOCABULARY + 1))
    else:
        ranks = (1 + u * ((VOCABULARY + 1) ** (1 - alpha) - 1)) ** (1 / (1 - alpha))
    with np.errstate(over="ignore"):
        ids: Ints = (ranks.astype(np.int64) + VOCABULARY * field) * _SPREAD
    return ids


def batch_of(job: Job, number: int) -> Batch:
    """Batch number `number`, the same in every process."""
    rng = np.random.default_rng(number)
    length = (job.ids - job.singles) // job.bags if job.bags else 0
    columns = [draw(rng, SAMPLES, field, job.alpha) for field in range(job.singles)]
    ids = np.ascontiguousarray(np.stack(columns, axis=1))
    offsets = length * np.arange(SAMPLES + 1)
    weights = np.full(SAMPLES * length, 1 / max(length, 1), np.float32)
    bags = tuple(
        Bag(draw(rng, SAMPLES * length, job.singles + bag, job.alpha), offsets, weights) for bag in range(job.bags)
    )
    dense = rng.standard_normal((SAMPLES, job.dense)).astype(np.float32)
    span = Span(0, Cursor(), Cursor(), np.zeros((3, 0)))
    labels = (rng.random(SAMPLES) < 0.3).astype(np.float32)
    return Batch(labels, ids, bags, dense, None, span, span)
