"""Staleness weights: the vectors of our note on staleness (section 5.1) and what they do to an update."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline import pace as p
from paceline.errors import PaceError

STALENESS = (0, 1, 2, 4, 9, 100, 1000, 3000)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (p.Weight("power", 2), (1, 1, 0.707107, 0.5, 0.333333, 0.1, 0.031623, 0.018257)),
        (p.Weight("relative", 2), (1, 1, 1, 1, 1, 1, 0.2, 0.066667)),
        (p.Weight("inverse"), (1, 1, 1 / 2, 1 / 4, 1 / 9, 1 / 100, 1 / 1000, 1 / 3000)),
        (p.Weight("none"), (1,) * 8),
        (p.Weight("log", 2), tuple(1 / (1 + math.log2(1 + s)) for s in STALENESS)),
    ],
)
def test_the_vectors(weight, expected):
    assert [weight.factor(s, 100) for s in STALENESS] == pytest.approx(expected, abs=1e-6)


laws = st.builds(p.Weight, st.sampled_from(["power", "log", "relative", "inverse", "none"]), st.floats(1.01, 50))


@given(laws, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 5000))
def test_every_law_falls_and_stays_in_its_bounds(weight, a, b, workers):
    low, high = (weight.factor(s, workers) for s in (max(a, b), min(a, b)))
    assert 0 < low <= high <= 1
    assert weight.factor(0, workers) == 1


@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_power_runs_from_inverse_to_none(s, workers):
    assert p.Weight("power", 1).factor(s, workers) == pytest.approx(p.Weight("inverse").factor(s, workers))
    assert p.Weight("power", 1e12).factor(s, workers) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"law": "cube"}, "law is 'cube'"),
        ({"k": 0}, "k is 0"),
        ({"k": float("inf")}, "finite"),
        ({"law": "log", "k": 1.0}, "above 1"),
        ({"rows": "both"}, "rows is 'both'"),
        ({"scales": "loss"}, "scales is 'loss'"),
    ],
)
def test_impossible_weights_are_refused(values, message):
    with pytest.raises(PaceError, match=message):
        p.Weight(**values)


def two_pushes(weight):
    """Worker b's gradient is computed on version 0 and applied three updates later."""
    state = p.begin(p.asynchronous(weight))
    commands = []
    for worker in ("a", "b"):
        p.step(state, p.WorkerJoined(worker))
    for _ in range(5):
        p.step(state, p.BatchRead(8))
    p.step(state, p.WorkRequested("a"))
    p.step(state, p.WorkRequested("b"))
    for _ in range(3):
        commands += p.step(state, p.GradientPushed("a", state.holding["a"]))
        commands += p.step(state, p.WorkRequested("a"))
    commands += p.step(state, p.GradientPushed("b", state.holding["b"]))
    return [c for c in commands if isinstance(c, p.Apply)]


@pytest.mark.parametrize("on", ["gradient", "step"])
def test_a_late_gradient_weighs_what_the_law_says(on):
    weight = p.Weight("power", 2, scales=on)
    applies = two_pushes(weight)
    assert [a.parts[0].weight for a in applies] == pytest.approx([1, 1, 1, 3**-0.5])
    assert applies[-1].parts[0].factor == pytest.approx(3**-0.5 if on == "gradient" else 1)
    assert applies[-1].weighing == weight
    assert [a.samples for a in applies] == [8, 16, 24, 32]


def test_a_pace_with_a_weight_survives_json():
    pace = p.gba(4, 2, "version", p.Weight("log", 3, "row", "step"))
    assert p.Pace.from_json(pace.to_json()) == pace
    assert p.Pace.from_json(p.sync(3).to_json()) == p.sync(3)
