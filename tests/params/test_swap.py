"""Optimizers with decay periods: the vectors and invariants of shared/papers/staleness_and_swap.md, section 5.2, on the
kernel, its numpy twin and dense parameters; and the same idea in Adam, RMSProp and FTRL."""

import numpy as np
import pytest
from bodies import Dense, Rows, Twin, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paceline import Clock
from paceline.params.sparse import FTRL, Adagrad, Adam, RowwiseAdagrad
from paceline.params.swap import FTRLSWAP, AdagradSWAP, AdamSWAP, RMSPropSWAP, RowwiseAdagradSWAP
from paceline.params.table import RowBlock, RowGradient, Table

SWAPS = [AdagradSWAP, RowwiseAdagradSWAP, AdamSWAP, RMSPropSWAP, FTRLSWAP]
NEVER = 1e12  # samples: a period that no test reaches
bodies = pytest.mark.parametrize("body", [Rows, Twin, Dense])


# --- the vectors of AdagradDecay: samples = global step, period = T ----------------------------------------------


VECTORS = [  # w0, g, A0, T, rho, then (counter, accum, w) at gs = 1, 2, 3, 4
    (1.0, 0.1, 0.1, 3, 0.9, (0, 0.11, 0.698489), (0, 0.12, 0.409814), (1, 0.118, 0.118702), (1, 0.128, -0.160806)),
    (3.0, 0.2, 0.1, 3, 0.9, (0, 0.14, 2.465478), (0, 0.18, 1.994073), (1, 0.202, 1.549079), (1, 0.242, 1.142521)),
    (0.0, 0.1, 1.0, 3, 0.6, (0, 1.01, -0.099504), (0, 1.02, -0.198518), (1, 1.01, -0.298022), (1, 1.02, -0.397037)),
]


@bodies
@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("catch_up", ["lazy", "eager"])
def test_public_vectors(body, vector, catch_up):
    w0, g, initial, period, decay, *expected = vector
    held = body(AdagradSWAP(1.0, initial, decay=decay, period=period, eager=catch_up == "eager"), f32([w0]))
    for gs, (counter, accum, w) in enumerate(expected, 1):
        held.step(f32([g]), Clock(gs, gs))
        assert held.slots[0, 1] == counter
        assert held.slots[0, 0] == pytest.approx(accum, rel=1e-6)
        assert held.weights[0, 0] == pytest.approx(w, abs=1e-6)


@bodies
@pytest.mark.parametrize(
    ("options", "counters", "accums"),
    [
        ({}, [1, 2, 3, 4, 5, 5, 5, 5], [0.11, 0.11, 0.11, 0.11, 0.11, 0.12, 0.13, 0.14]),
        ({"eager": True}, [5] * 8, [0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18]),
        ({"born_current": True}, [5] * 8, [0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18]),
    ],
    ids=["lazy", "eager", "born_current"],
)
def test_late_row(body, options, counters, accums):
    held = body(AdagradSWAP(1.0, 0.1, decay=0.8, period=100, **options), f32([0.0]))
    for gs, counter, accum in zip(range(510, 518), counters, accums, strict=True):
        held.step(f32([0.1]), Clock(gs, gs))
        assert held.slots[0, 1] == counter
        assert held.slots[0, 0] == pytest.approx(accum, rel=1e-6)


@bodies
@pytest.mark.parametrize(
    ("eager", "expected"),
    [(False, [5.1, 3.55, 2.775, 2.3875, 3.3875]), (True, [5.1, 1.6375, 2.6375, 3.6375, 4.6375])],
    ids=["lazy", "eager"],
)
@pytest.mark.parametrize("born_current", [False, True])
def test_gap(body, eager, expected, born_current):
    """`born_current` is about new rows only: this one is known since period 0 and owes what it rested."""
    optimizer = AdagradSWAP(1.0, 0.1, decay=0.5, period=10, eager=eager, born_current=born_current)
    held = body(optimizer, f32([0.0]))
    accums = {}
    for gs in (1, 2, 3, 4, 5, 36, 37, 38, 39):
        held.step(f32([1.0]), Clock(gs, gs))
        accums[gs] = held.slots[0, 0]
    assert [accums[gs] for gs in (5, 36, 37, 38, 39)] == pytest.approx(expected, rel=1e-6)
    assert held.slots[0, 1] == 3


@bodies
def test_steady_state_and_step_floor(body):
    """T*q/(1-rho) just before a boundary, rho times that just after: 75 and 60; |step| = lr |g| / sqrt(75)."""
    held = body(AdagradSWAP(1.0, 0.1, decay=0.8, period=50), f32([0.0]))
    g = np.sqrt(np.float32(0.3))
    for gs in range(1, 50 * 60):
        before = held.weights[0, 0]
        held.step(f32([g]), Clock(gs, gs))
    assert held.slots[0, 0] == pytest.approx(75, rel=1e-3)
    assert before - held.weights[0, 0] == pytest.approx(g / np.sqrt(75), rel=1e-3)
    held.step(f32([g]), Clock(50 * 60, 50 * 60))
    assert held.slots[0, 0] - 0.3 == pytest.approx(60, rel=1e-3)


# --- invariants ----------------------------------------------------------------------------------------------------


PLAIN = [
    (AdagradSWAP(0.05, 0.1, period=NEVER), Adagrad(0.05, 0.0, 0.1), 1),
    (RowwiseAdagradSWAP(0.05, 0.1, period=NEVER), RowwiseAdagrad(0.05, 0.0, 0.1), 1),
    (FTRLSWAP(0.1, 0.5, 0.02, 0.1, period=NEVER), FTRL(0.1, 0.5, 0.02, 0.1), 1),
]


@bodies
@pytest.mark.parametrize(("swap", "plain", "extra"), PLAIN, ids=lambda x: type(x).__name__)
def test_a_period_longer_than_the_run_is_the_plain_optimizer_bitwise(body, swap, plain, extra):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(1, 7)).astype(np.float32)
    short = type(swap)(**{**vars(swap), "period": 8})
    a, b, c = body(swap, weights), body(plain, weights), body(short, weights)
    for step in range(1, 31):
        grads = rng.normal(size=(1, 7)).astype(np.float32) * np.float32(rng.integers(0, 2))
        for held in (a, b, c):
            held.step(grads, Clock(step, 3 * step))
    np.testing.assert_array_equal(a.weights, b.weights)
    np.testing.assert_array_equal(a.slots[:, :-extra], b.slots)
    assert (a.slots[:, -1] == 0).all()
    assert not (c.weights == b.weights).any()  # and a short period is not


@bodies
@pytest.mark.parametrize("kind", SWAPS)
def test_lazy_and_eager_agree_bitwise_on_a_row_touched_in_every_period(body, kind):
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(1, 5)).astype(np.float32)
    held = [body(kind(period=4, decay=0.7, eager=eager), weights) for eager in (False, True)]
    rested = [body(kind(period=4, decay=0.7, eager=eager), weights) for eager in (False, True)]
    for step in range(1, 60):
        grads = rng.normal(size=(1, 5)).astype(np.float32)
        for h in held:
            h.step(grads, Clock(step, 3 * step))
        if step < 10 or step > 50:
            for h in rested:
                h.step(grads, Clock(step, 3 * step))
    np.testing.assert_array_equal(held[0].weights, held[1].weights)
    np.testing.assert_array_equal(held[0].slots, held[1].slots)
    assert held[0].slots[0, -1] == 59 * 3 // 4
    assert not (rested[0].slots == rested[1].slots).all()  # else the check above says nothing


gradients = arrays(np.float32, (4, 3), elements=st.floats(-4, 4, width=32))
visits = st.lists(
    st.tuples(gradients, st.integers(1, 9), arrays(np.bool_, 4)).filter(lambda x: bool(x[2].any())),
    min_size=1,
    max_size=8,
)
TUNED = [
    AdagradSWAP(0.05, 0.1, decay=0.5, period=4),
    RowwiseAdagradSWAP(0.05, 0.02, decay=0.9, period=3),
    AdamSWAP(0.01, 0.5, decay=0.6, period=4),
    RMSPropSWAP(0.02, 1e-3, decay=0.3, period=2.5),
    FTRLSWAP(0.1, 0.5, 0.02, 0.1, decay=0.5, period=4),
    FTRLSWAP(0.1, 1.0, decay=0.9, period=4),
]


@pytest.mark.parametrize("optimizer", TUNED, ids=str)
@pytest.mark.parametrize("options", [{}, {"eager": True}, {"born_current": True}], ids=str)
@settings(max_examples=30, deadline=None)
@given(visits)
def test_the_kernel_does_what_its_twin_does(optimizer, options, steps):
    optimizer = type(optimizer)(**{**vars(optimizer), **options})
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    kernel, twin = Rows(optimizer, weights), Twin(optimizer, weights)
    samples = 0
    for number, (grads, more, touched) in enumerate(steps, 1):
        samples += more
        for held in (kernel, twin):
            held.step(grads[touched], Clock(number, samples), touched)
        np.testing.assert_array_equal(kernel.slots[:, -1], twin.slots[:, -1])
    np.testing.assert_allclose(kernel.weights, twin.weights, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(kernel.slots, twin.slots, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [AdagradSWAP, RowwiseAdagradSWAP])
@pytest.mark.parametrize("eager", [False, True])
@settings(max_examples=30, deadline=None)
@given(visits)
def test_the_sum_never_falls_below_the_floor(kind, eager, steps):
    optimizer = kind(0.1, 0.5, decay=0.01, period=2, eager=eager)
    kernel, twin = (body(optimizer, np.zeros((4, 3), np.float32)) for body in (Rows, Twin))
    samples = 0
    for number, (grads, more, touched) in enumerate(steps, 1):
        samples += more
        for held in (kernel, twin):
            held.step(grads[touched], Clock(number, samples), touched)
            assert (held.slots[:, :-1] >= np.float32(0.5)).all()


def test_without_the_floor_the_sum_would_have_fallen_below_it():
    """The invariant above bites: 0.51 * 0.01 is lifted to 0.5."""
    held = Rows(AdagradSWAP(0.1, 0.5, decay=0.01, period=2), f32([0.0]))
    held.step(f32([0.1]), Clock(1, 1))
    held.step(f32([0.0]), Clock(2, 2))
    assert held.slots[0].tolist() == [0.5, 1]


@pytest.mark.parametrize("body", [Rows, Twin])
def test_the_period_does_not_depend_on_how_samples_are_cut_into_updates(body):
    """8 samples in 8 updates of one, or in 2 updates of four: the same periods pass, and 100 halves twice."""
    counters, sums = [], []
    for pushes, size in ((8, 1), (2, 4)):
        held = body(AdagradSWAP(0.1, 0.1, decay=0.5, period=4), f32([0.0]))
        held.step(f32([10.0]), Clock(1, 0))
        for push in range(1, pushes + 1):
            held.step(f32([0.0]), Clock(1 + push, push * size))
        counters.append(held.slots[0, 1])
        sums.append(held.slots[0, 0])
    assert counters == [2, 2]
    np.testing.assert_allclose(sums, 100.1 / 4, rtol=1e-6)


@bodies
@pytest.mark.parametrize(("samples", "counter"), [(5 * 10**9 - 1, 4999), (5 * 10**9, 5000)])
def test_samples_beyond_float32(body, samples, counter):
    """5e9 - 1 is 5e9 in float32."""
    held = body(AdagradSWAP(period=1_000_000, eager=True), f32([0.0]))
    held.step(f32([1.0]), Clock(1, samples))
    assert held.slots[0, 1] == counter


def test_a_row_that_is_cut_pays_nothing_and_stays_unborn():
    for born_current, counter in ((False, 0), (True, -1)):
        table = Table(np.zeros(1, np.float32), AdagradSWAP(0.1, period=5, born_current=born_current), seed=0)
        ids = np.array([1, 2])
        rows = table.find_or_insert(ids)
        table.load(RowBlock(ids[:1], f32([0.0]), f32([9.0, counter]), np.array([[50, 1]])))
        # row 1 was last updated at 50: ten versions after the token, more than the limit of 3; row 2 never was
        table.apply([RowGradient(rows, f32([1.0], [1.0]), 1.0, 40)], Clock(51, 51), 3, 0)
        slots = np.concatenate([block.slots for block in table.blocks()])
        assert slots[0].tolist() == [9.0, counter]
        assert slots[1].tolist() == pytest.approx([1.1, 10 if born_current else 1])


# --- Adam, RMSProp and FTRL ----------------------------------------------------------------------------------------


def mean_square(steps, period, decay):
    """Per element, sum rho^k g^2 / sum rho^k in float64; k = periods that ended since, up to the last step."""
    now = steps[-1][0] // period
    powers = np.array([decay ** (now - samples // period) for samples, _ in steps])
    squares = np.array([np.float64(g) ** 2 for _, g in steps])
    return np.tensordot(powers, squares, 1) / powers.sum()


@bodies
@pytest.mark.parametrize("kind", [AdamSWAP, RMSPropSWAP])
def test_squares_of_a_period_weigh_the_same_and_older_ones_less(body, kind):
    rng = np.random.default_rng(3)
    expected = rng.normal(size=(1, 5))
    held = body(kind(0.1, period=10, decay=0.5), expected.astype(np.float32))
    expected = np.float64(expected.astype(np.float32))
    steps, m = [], np.zeros(5)
    for number in range(1, 40):
        g = rng.normal(size=(1, 5)).astype(np.float32)
        steps.append((3 * number, g[0]))
        held.step(g, Clock(number, 3 * number))
        if kind is AdamSWAP:
            m = 0.9 * m + 0.1 * np.float64(g[0])
            top = m / (1 - 0.9**number)
        else:
            top = np.float64(g[0])
        expected -= 0.1 * top / (np.sqrt(mean_square(steps, 10, 0.5)) + 1e-8)
        np.testing.assert_allclose(held.weights, expected, rtol=1e-5, atol=1e-5)


def test_adam_keeps_the_momentum_of_lazy_adam():
    rng = np.random.default_rng(4)
    a, b = Twin(AdamSWAP(period=2), f32([0, 0, 0])), Twin(Adam(), f32([0, 0, 0]))
    for number in range(1, 20):
        g = rng.normal(size=(1, 3)).astype(np.float32)
        a.step(g, Clock(number, number))
        b.step(g, Clock(number, number))
    np.testing.assert_array_equal(a.slots[:, :3], b.slots[:, :3])


@pytest.mark.parametrize("kind", [AdamSWAP, RMSPropSWAP, FTRLSWAP])
@bodies
def test_ages_of_rest_do_no_harm(body, kind):
    """Eager, 10^6 periods late: decay^P is 0 in float32, and the row goes on as with its first squares, 4 and 9."""
    held = body(kind(0.1, period=1, eager=True), f32([0.5, -0.5]))
    held.step(f32([2.0, 3.0]), Clock(1, 1))
    held.step(f32([-2.0, 3.0]), Clock(2, 1_000_000))
    squares = {AdamSWAP: slice(2, 5), RMSPropSWAP: slice(0, 3), FTRLSWAP: slice(2, 4)}[kind]
    assert held.slots[0, squares].tolist() == [4, 9, 1][: 2 if kind is FTRLSWAP else 3]
    assert np.isfinite(held.weights).all()
    assert (np.abs(held.weights - f32([0.5, -0.5])) < 1).all()


@bodies
@pytest.mark.parametrize("eager", [False, True])
def test_a_decay_of_ftrl_moves_no_weight(body, eager):
    optimizer = FTRLSWAP(0.1, 0.5, l1=0.3, l2=0.05, decay=0.5, period=100, eager=eager)
    held, rigid = (
        body(optimizer, f32([0.5, -0.7, 0.01, 2.0])),
        body(FTRL(0.1, 0.5, 0.3, 0.05), f32([0.5, -0.7, 0.01, 2.0])),
    )
    for number, scale in enumerate((1.0, -0.5, 0.3), 1):
        for h in (held, rigid):
            h.step(f32([scale, 2 * scale, 0.2 * scale, 0.0]), Clock(number, number))
    weights, slots = held.weights, held.slots
    assert (weights[0] == 0).tolist() == [False, False, True, False]
    z, n = slots[0, :4], slots[0, 4:8]
    assert z[2] != 0
    assert abs(z[2]) <= 0.3
    held.step(f32([0, 0, 0, 0]), Clock(4, 350))
    after_z, after_n = held.slots[0, :4], held.slots[0, 4:8]
    np.testing.assert_allclose(after_n, n * (0.125 if eager else 0.5), rtol=1e-6)
    assert (after_n[:3] < n[:3]).all()
    np.testing.assert_allclose(held.weights, weights, rtol=1e-6)
    assert held.weights[0, 2] == 0
    assert after_z[2] == z[2]
    assert (np.abs(after_z[:2]) < np.abs(z[:2])).all()  # the dual did follow
    # Without the new z, the same n would have moved the weights.
    old_z = -np.sign(z) * (np.abs(z) - 0.3) / ((0.5 + np.sqrt(after_n)) / 0.1 + 0.1)
    assert (np.abs(old_z[:2] - weights[0, :2]) > 0.01).all()
    # And later steps are larger than without the decay.
    before, stiff = held.weights, rigid.weights
    for h in (held, rigid):
        h.step(f32([0.5, 0.5, 0, 0]), Clock(5, 351 if eager else 150))
    assert (np.abs(held.weights - before)[0, :2] > 1.05 * np.abs(rigid.weights - stiff)[0, :2]).all()


@bodies
def test_a_zeroed_weight_of_ftrl_keeps_its_dual_however_long_it_rests(body):
    held = body(FTRLSWAP(0.1, l1=0.5, period=1, eager=True), f32([0.0]))
    held.step(f32([0.3]), Clock(1, 1))
    z = held.slots[0, 0]
    for number in (2, 3):
        held.step(f32([0.0]), Clock(number, 1_000_000 * number))
        assert held.weights[0, 0] == 0
        assert held.slots[0, 0] == z == np.float32(0.3)
