"""Metrics against their definitions, and merged counters against one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.metrics import Counters, gauc


def brute_auc(logits, labels):
    wins = pairs = 0.0
    for a in logits[labels > 0.5]:
        for b in logits[labels < 0.5]:
            pairs += 1
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
    return wins / pairs


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 120), st.integers(0, 10_000))
def test_counters_are_the_definitions(rows, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows).round(1).astype(np.float32)
    labels = (rng.random(rows) < 0.4).astype(np.float32)
    labels[0], labels[1] = 0, 1
    groups = rng.integers(0, 4, rows)
    counters = Counters()
    counters.add(logits, labels, groups)
    result = counters.result()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    rate = labels.mean()
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    assert result["auc"] == pytest.approx(brute_auc(logits, labels), abs=1e-9)
    assert result["logloss"] == pytest.approx(loss, rel=1e-6)
    assert result["ne"] == pytest.approx(loss / entropy, rel=1e-5)
    assert result["calibration"] == pytest.approx(p.sum() / labels.sum(), rel=1e-6)
    both = [g for g in range(4) if 0 < labels[groups == g].sum() < (groups == g).sum()]
    if both:
        weighted = [brute_auc(logits[groups == g], labels[groups == g]) * (groups == g).sum() for g in both]
        assert result["gauc"] == pytest.approx(sum(weighted) / sum((groups == g).sum() for g in both), abs=1e-9)
    else:
        assert result["gauc"] is None


@given(st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_parts_merge_to_the_whole(parts, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=300).astype(np.float32), (rng.random(300) < 0.3).astype(np.float32)
    whole = Counters()
    whole.add(logits, labels)
    merged = Counters()
    for piece in (
        rng.permutation(np.array_split(np.arange(300), parts))
        if parts == 1
        else np.array_split(rng.permutation(300), parts)
    ):
        counters = Counters()
        counters.add(logits[piece], labels[piece])
        merged.merge(counters)
    a, b = whole.result(), merged.result()
    assert a["auc"] == b["auc"]
    assert a["logloss"] == pytest.approx(b["logloss"], rel=1e-12)


def test_one_class_has_no_auc():
    counters = Counters()
    counters.add(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert counters.result()["auc"] is None
    assert counters.result()["ne"] is None
    assert gauc([]) is None


def test_extreme_logits_stay_finite():
    counters = Counters()
    counters.add(np.array([1e4, -1e4, 50], np.float32), np.array([0, 1, 1], np.float32))
    result = counters.result()
    assert math.isfinite(result["logloss"])
    assert result["auc"] == 0.0


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0, 1e4])
def test_auc_is_exact_to_a_millionth_at_any_scale_of_the_logits(scale):
    rng = np.random.default_rng(0)
    labels = (rng.random(200_000) < 0.25).astype(np.float32)
    logits = ((rng.normal(size=200_000) + labels - 1.5) * scale).astype(np.float32)
    order = np.argsort(logits, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    clicks = labels.sum(dtype=np.float64)
    exact = (ranks[labels > 0.5].sum() - clicks * (clicks + 1) / 2) / (clicks * (len(labels) - clicks))
    counters = Counters()
    counters.add(logits, labels)
    assert counters.result()["auc"] == pytest.approx(exact, abs=2e-6)
