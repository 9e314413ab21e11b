"""Evaluation metrics as counters that can be merged, so that parts of a day may be scored anywhere and in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BITS = 20
BINS = 1 << BITS

Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class Counters:
    """AUC, log loss, calibration, GAUC.

    AUC comes from a histogram of the logits with 2^20 bins, the leading bits of the float32: bins are 2^-11 of the
    logit wide whatever its size, and ties within a bin count half, so it is exact to about 1e-6.

    GAUC needs every score: 13 bytes per row, kept only if groups are given.
    """

    positives: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    negatives: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    losses: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    grouped: list[tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.bool_]]] = field(default_factory=list)

    def add(self, logits: Floats, labels: Floats, groups: npt.NDArray[np.int64] | None = None) -> None:
        """Count a batch: logits and labels (0 or 1) float32 [n], groups int64 [n] or None."""
        positive = labels > 0.5
        bins = _bins(logits)
        np.add.at(self.positives, bins[positive], 1)
        np.add.at(self.negatives, bins[~positive], 1)
        z = logits.astype(np.float64)
        self.losses.append(float(np.sum(np.logaddexp(0.0, z) - z * positive)))
        self.predicted.append(float(np.sum(0.5 * (1.0 + np.tanh(0.5 * z)))))
        if groups is not None:
            self.grouped.append((groups, logits, positive))

    def merge(self, other: Counters) -> None:
        """Add another part's counts."""
        self.positives += other.positives
        self.negatives += other.negatives
        self.losses += other.losses
        self.predicted += other.predicted
        self.grouped += other.grouped

    @property
    def rows(self) -> int:
        return int(self.positives.sum() + self.negatives.sum())

    @property
    def positive_rows(self) -> int:
        return int(self.positives.sum())

    def result(self) -> dict[str, Any]:
        """auc, logloss, gauc, ne (log loss over the entropy of the click rate), calibration (predicted over actual
        clicks), rows and click_rate. A value that is not defined (one class, no groups) is None."""
        rows, positive = self.rows, self.positive_rows
        logloss = math.fsum(self.losses) / rows if rows else None
        rate = positive / rows if rows else 0.0
        one_class = positive in (0, rows)
        entropy = 0.0 if one_class else -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        return {
            "auc": None if one_class else _auc(self.positives, self.negatives),
            "logloss": logloss,
            "gauc": gauc(self.grouped),
            "ne": None if one_class or logloss is None else logloss / entropy,
            "calibration": None if not positive else math.fsum(self.predicted) / positive,
            "rows": rows,
            "click_rate": rate,
        }


def _bins(logits: Floats) -> npt.NDArray[np.int64]:
    """The leading bits of each float32, in the order of the numbers."""
    bits = (logits.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    binned: npt.NDArray[np.int64] = (ordered >> np.uint32(32 - BITS)).astype(np.int64)
    return binned


def _auc(positives: npt.NDArray[np.int64], negatives: npt.NDArray[np.int64]) -> float:
    """P(score of a positive > score of a negative) + 1/2 P(equal), from counts per bin."""
    below = np.cumsum(negatives) - negatives
    wins = float(np.sum(positives * (below + 0.5 * negatives), dtype=np.float64))
    return wins / (float(positives.sum()) * float(negatives.sum()))


def gauc(parts: list[tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.bool_]]]) -> float | None:
    """AUC within each group, weighted by the group's rows; groups of one class are left out (Zhu et al., KDD 2017)."""
    if not parts:
        return None
    groups, logits, positive = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.lexsort((logits, groups))
    groups, logits, positive = groups[order], logits[order], positive[order]
    # Ranks with ties at their mean, inside each group.
    fresh = np.concatenate([[True], groups[1:] != groups[:-1]])
    tie = np.flatnonzero(np.concatenate([[True], (groups[1:] != groups[:-1]) | (logits[1:] != logits[:-1])]))
    sizes = np.diff(np.concatenate([tie, [len(groups)]]))
    ranks = np.repeat(tie + (sizes + 1) / 2.0, sizes)
    starts = np.flatnonzero(fresh)
    counts = np.diff(np.concatenate([starts, [len(groups)]]))
    ranks = ranks - np.repeat(starts, counts)
    clicks = np.add.reduceat(positive.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(positive, ranks, 0.0), starts)
    both = (clicks > 0) & (clicks < counts)
    if not both.any():
        return None
    clicks, sums, counts = clicks[both], sums[both], counts[both]
    auc = (sums - clicks * (clicks + 1) / 2) / (clicks * (counts - clicks))
    return float(np.sum(auc * counts) / np.sum(counts))


def ranking_metrics(ranks: npt.NDArray[np.float64], at: list[int]) -> dict[str, float]:
    """hr@k and ndcg@k of held-out items at these ranks (from 1; half ranks are ties), [n]: the share that is among the
    first k, and the mean of 1 / log2(rank + 1) over those, 0 for the others (one relevant item: the ideal is 1)."""
    found: dict[str, float] = {}
    for k in at:
        hit = ranks <= k
        found[f"hr@{k}"] = float(hit.mean())
        found[f"ndcg@{k}"] = float(np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0).mean())
    return found
