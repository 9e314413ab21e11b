"""Ranking metrics of predicted ratings: each user's test rows, in the order of their predictions.

Our conventions: users with at least two test rows take part, and NDCG, MAP and precision want at least one relevant
row (rating >= `relevant`). Equal predictions keep the order of the file. NDCG's gain is 2^y - 1; ERR stops at a row
with probability (2^y - 1) / 2^y_max (as the public code of GPFM has it; Chapelle et al., CIKM 2009); precision@10
divides by 10 or by the rows that there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DEPTH = 10


def ranking(
    users: npt.NDArray[np.int64], scores: Floats, ratings: Floats, relevant: float, highest: float
) -> dict[str, float | None]:
    """ndcg@10, map@10, precision@10, err@10 and how many users they are means over (`ranked_users`); None without any.

    users, scores, ratings: [n]; users below 0 are left out, as one cannot tell them apart; highest: y_max."""
    found: dict[str, list[float]] = {f"{name}@{DEPTH}": [] for name in ("ndcg", "map", "precision", "err")}
    order = np.argsort(users, kind="stable")
    order = order[users[order] >= 0]
    _, starts = np.unique(users[order], return_index=True)
    for rows in np.split(order, starts[1:]):
        if len(rows) < 2:
            continue
        shown = ratings[rows[np.argsort(-scores[rows], kind="stable")]]
        if (shown >= relevant).any():
            found[f"ndcg@{DEPTH}"].append(_gain(shown) / _gain(-np.sort(-shown)))
            hits = shown >= relevant
            found[f"map@{DEPTH}"].append(_average_precision(hits))
            found[f"precision@{DEPTH}"].append(float(hits[:DEPTH].mean()))
        found[f"err@{DEPTH}"].append(_reciprocal(shown, highest))
    count = len(found[f"err@{DEPTH}"])
    return {**{name: float(np.mean(v)) if v else None for name, v in found.items()}, "ranked_users": count}


def _gain(ratings: Floats) -> float:
    top = ratings[:DEPTH]
    return float(np.sum((2.0**top - 1) / np.log2(np.arange(2, len(top) + 2))))


def _average_precision(hits: npt.NDArray[np.bool_]) -> float:
    """Mean of the precisions at the relevant rows among the first 10, over all that could be there."""
    top = hits[:DEPTH]
    precisions = np.cumsum(top) / np.arange(1, len(top) + 1)
    return float(np.sum(precisions * top) / min(DEPTH, int(hits.sum())))


def _reciprocal(ratings: Floats, highest: float) -> float:
    stops = np.clip((2.0 ** ratings[:DEPTH] - 1) / 2.0**highest, 0.0, 1.0)
    reached = np.concatenate([[1.0], np.cumprod(1 - stops)[:-1]])
    return float(np.sum(reached * stops / np.arange(1, len(stops) + 1)))
