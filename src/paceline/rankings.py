"""Ranking what was held out: HR@k and NDCG@k for each type, among all items and among a drawn sample of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.assembly import Job
from paceline.batch import Ints
from paceline.data.interactions import InteractionSet
from paceline.errors import ConfigError, LossError
from paceline.kernels import interactions as kernels
from paceline.metrics import ranking_metrics
from paceline.models.ranking import RankingModel
from paceline.runtimes.compute import Layout
from paceline.runtimes.local import settle_thread

_ITEMS = 1 << 16  # whose distances are computed at a time
_PAIRS = 1 << 18  # of a user and an item; a model's memory has so many numbers for each of its slots


@dataclass(frozen=True, slots=True)
class _Ranker:
    """What the threads share, all of it read only. users, items: rows[part] of each test's user and of every item;
    drawn: int64 [tests, candidates]."""

    model: RankingModel
    found: InteractionSet
    users: dict[str, Tensor]
    items: dict[str, Tensor]
    drawn: Ints

    @torch.no_grad()
    def ranks(self, tests: slice) -> tuple[Any, Any]:
        """(rank among all items, rank in the drawn sample) of each test, float64: ties at their mean."""
        found, all_tests = self.found, self.found.tests
        types, own_items = all_tests.types[tests], torch.from_numpy(all_tests.items[tests])
        count = len(found.item_ids)
        users = {name: rows[tests] for name, rows in self.users.items()}
        pieces = [
            self.model.rank(users, {k: rows[i : i + _ITEMS] for k, rows in self.items.items()}, torch.from_numpy(types))
            for i in range(0, count, _ITEMS)
        ]
        distances = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        if not bool(torch.isfinite(distances).all()):
            raise LossError(
                "a distance is not finite: a learning rate was too high (optimizer.sparse.lr, optimizer.dense.lr)"
            )
        own = distances.gather(1, own_items.unsqueeze(1))
        drawn = distances.gather(1, torch.from_numpy(self.drawn[tests]))
        of_sample = 1.0 + (drawn < own).sum(1) + 0.5 * (drawn == own).sum(1)
        rows = found.rows_of(all_tests.users[tests], types)
        starts, lengths = found.observed.starts[rows], np.diff(found.observed.starts)[rows]
        at = np.repeat(np.arange(len(rows)), lengths)
        ends = np.cumsum(lengths)
        places = np.arange(len(at)) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
        seen = found.observed.found[places].astype(np.int64)
        distances[torch.from_numpy(at), torch.from_numpy(seen)] = torch.inf  # trained on: no candidates
        distances.scatter_(1, own_items.unsqueeze(1), own)
        of_all = 1.0 + (distances < own).sum(1) + 0.5 * ((distances == own).sum(1) - 1)
        return of_all.numpy(), of_sample.numpy()


def rank_tests(job: Job, files: list[str], tests: list[str] | None = None) -> dict[str, Any]:
    """How the job's state ranks what it holds out of `files` (or the interactions of the files `tests`), {} if there is
    nothing. Candidates are all items but those that the user has feedback of that type on among what was not held out;
    other held-out items stay candidates.

    {"types": {type: {"tests": rows, "all": {"items": n, "hr@10": ..., "ndcg@10": ...}, "sampled": ...}}, and what the
    model tells}. Raises DataError for bad files, ConfigError if a user has too few candidates.
    """
    config, log = job.config.interactions, job.interactions
    assert config is not None
    assert log is not None
    found = log.set_of(files, tests)
    count = len(found.tests.users)
    if not count:
        return {}
    replica = job.replicas[0]
    model = replica.model
    assert isinstance(model, RankingModel)
    job.route.read_dense(replica.flat)
    ranker = _Ranker(
        model, found, _rows(job, found.user_ids[found.tests.users]), _rows(job, found.item_ids), _draw(job, found)
    )
    settle = max(1, _PAIRS // min(len(found.item_ids), _ITEMS))
    with ThreadPoolExecutor(len(job.replicas), "rank", settle_thread) as pool:
        made = list(pool.map(ranker.ranks, _slices(count, settle)))
    of_all, of_sample = (np.concatenate([part[i] for part in made]) for i in range(2))
    told: dict[str, Any] = {}
    for number, name in enumerate(config.types):
        mine = found.tests.types == number
        if mine.any():
            told[name] = {
                "tests": int(mine.sum()),
                "all": {"items": len(found.item_ids), **ranking_metrics(of_all[mine], config.ranking.at)},
                "sampled": {"items": config.ranking.candidates, **ranking_metrics(of_sample[mine], config.ranking.at)},
            }
    return {"types": told, **model.told()}


def flat(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names with slashes, such as types/buy/all/hr@10."""
    found: dict[str, Any] = {}
    for key, value in result.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _rows(job: Job, ids: Ints) -> dict[str, Tensor]:
    """rows[part] float32 [n, width] of ids int64 [n]; nothing is created in the tables."""
    pulled = job.route.read(ids)
    layout: Layout = job.layout
    weights = pulled.weights[pulled.inverse]
    return {
        part.name: torch.from_numpy(np.ascontiguousarray(weights[:, begin : begin + part.width]))
        for part, begin in zip(layout.parts, layout.begins(), strict=True)
    }


def _draw(job: Job, found: InteractionSet) -> Ints:
    """The sample of each test, the same whatever the model and the epoch."""
    config = job.config.interactions
    assert config is not None
    tests = found.tests
    rows = found.rows_of(tests.users, tests.types)
    drawn = np.empty((len(rows), config.ranking.candidates), np.int64)
    items = len(found.item_ids)
    short = kernels.draw_candidates(
        job.config.seed, rows, tests.items, found.observed.starts, found.observed.found, items, drawn
    )
    if short >= 0:
        row = rows[short]
        seen = int(found.observed.starts[row + 1] - found.observed.starts[row])
        raise ConfigError(
            f"interactions.ranking.candidates: {config.ranking.candidates} are not there for a user with feedback on"
            f" {seen:,} of {items:,} items; draw fewer"
        )
    return drawn
