"""The note's test vectors and invariants: speed-up, both inversions, servers, the choice under a memory limit."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.planning.formulas import (
    Algorithm,
    admissible_overhead,
    admissible_workers,
    choose_algorithms,
    efficiency,
    expected_maximum,
    ring_seconds,
    servers_needed,
    speed_up,
    speed_up_limit,
    worker_link_seconds,
)

OVERHEADS = st.floats(1e-4, 10)
SIZES = st.floats(1, 1e9)


@pytest.mark.parametrize(
    ("overhead", "expected", "limit"),
    [(0.05, [1.909, 3.500, 6.000, 9.333, 12.923], 21), (0.10, [1.833, 3.143, 4.889, 6.769, 8.381], 11)],
)
def test_speed_up(overhead, expected, limit):
    assert [round(speed_up(g, overhead), 3) for g in (2, 4, 8, 16, 32)] == expected
    assert speed_up_limit(overhead) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("workers", "target", "percent"), [(4, 0.80, 9.09), (4, 0.75, 12.5), (8, 0.80, 3.70), (16, 0.50, 7.14)]
)
def test_largest_overhead(workers, target, percent):
    assert round(100 * admissible_overhead(workers, target), 2) == percent


def test_largest_number_of_workers():
    assert admissible_workers(0.1, 0.8) == pytest.approx(3.75)
    assert math.floor(admissible_workers(0.1, 0.8)) == 3


def test_servers():
    assert servers_needed(240e6, 8, 1.25e9, 0.5) == 7  # 6.144
    assert servers_needed(240e6, 8, 1.25e9, 0.5, duplex=True) == 4  # 3.072
    assert servers_needed(240e6, 8, 1.25e9, 0.5, skew=1.5) == 10  # 9.216
    assert servers_needed(1e6, 1, 2e6, 1.0) == 1, "exactly one is not rounded up to two"


def test_links():
    assert worker_link_seconds(240e6, 1.25e9) == pytest.approx(0.384)
    assert ring_seconds(240e6, 4, 1.25e9) == pytest.approx(0.288)
    assert ring_seconds(240e6, 1, 1.25e9) == 0


@given(OVERHEADS, st.integers(1, 500))
def test_speed_up_increases_below_its_limit(overhead, workers):
    assert speed_up(1, overhead) == pytest.approx(1)
    assert speed_up(workers, overhead) < speed_up(workers + 1, overhead) < speed_up_limit(overhead)
    assert speed_up(workers, 0.0) == workers
    assert speed_up_limit(0.0) == math.inf


@given(st.integers(2, 500), st.floats(0.01, 0.999))
def test_the_inversions_are_inverse_to_one_another(workers, target):
    overhead = admissible_overhead(workers, target)
    if target * workers <= 1:
        assert overhead == math.inf
    elif target * workers > 1.001:
        assert efficiency(workers, overhead) == pytest.approx(target)
        assert admissible_workers(overhead, target) == pytest.approx(workers)


@given(SIZES, st.integers(1, 1000), st.floats(1e3, 1e10), st.floats(1e-4, 10), st.floats(1, 4))
def test_servers_are_monotone(size, workers, bandwidth, compute, more):
    def needed(s=size, g=workers, b=bandwidth, t=compute):
        return servers_needed(s, g, b, t)

    assert needed(s=size * more) >= needed()
    assert needed(g=workers + 1) >= needed()
    assert needed(b=bandwidth * more) <= needed()
    assert needed(t=compute * more) <= needed()


def test_the_choice_of_algorithms():
    layers = [[Algorithm("a", 10, 1), Algorithm("b", 4, 6)], [Algorithm("a", 8, 2), Algorithm("b", 5, 5)]]
    best = choose_algorithms(layers, 8)
    assert best is not None
    assert [way.name for way in best] == ["b", "a"]
    assert (sum(w.seconds for w in best), sum(w.memory for w in best)) == (12, 8)
    assert choose_algorithms(layers, 2) is None, "an infeasible instance is reported, not rounded"
    assert choose_algorithms(layers, -1) is None
    assert choose_algorithms([], 0) == ()


WAYS = st.lists(
    st.builds(Algorithm, st.just("x"), st.integers(0, 20).map(float), st.integers(0, 12)), min_size=1, max_size=4
)


@given(st.lists(WAYS, max_size=5), st.integers(0, 40))
def test_dynamic_programming_equals_brute_force(layers, limit):
    fitting = [
        sum(w.seconds for w in ways) for ways in itertools.product(*layers) if sum(w.memory for w in ways) <= limit
    ]
    best = choose_algorithms(layers, limit)
    if not fitting:
        assert best is None
    else:
        assert best is not None
        assert len(best) == len(layers)
        assert all(way in layer for way, layer in zip(best, layers, strict=True))
        assert sum(w.memory for w in best) <= limit
        assert sum(w.seconds for w in best) == min(fitting)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(1, 4))
def test_the_expected_maximum_equals_the_mean_over_all_draws(times, draws):
    every = [max(drawn) for drawn in itertools.product(times, repeat=draws)]
    assert expected_maximum(times, draws) == pytest.approx(sum(every) / len(every))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: speed_up(0, 0.1),
        lambda: speed_up(2, -0.1),
        lambda: admissible_overhead(4, 0.0),
        lambda: admissible_workers(0.1, 1.5),
        lambda: servers_needed(1, 1, 0, 1),
        lambda: expected_maximum([], 3),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()
