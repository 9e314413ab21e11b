"""Mostly zeros on the wire: lossless, and as short as said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.exchange.thin import HEAD, Thin, pack, sent_of, thicken, thin, thin_bytes, unpack


@given(st.integers(0, 400), st.floats(0, 1), st.integers(0, 1000))
def test_what_is_read_is_what_was_written(n, density, seed):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(n) < density, rng.standard_normal(n), 0).astype(np.float32)
    found = thin(values)
    np.testing.assert_array_equal(thicken(found, n), values)
    assert found.nbytes <= values.nbytes


@pytest.mark.parametrize(
    ("density", "form"), [(0.99, "whole"), (0.5, "mask"), (0.05, "mask"), (0.03, "places"), (0.0, "places")]
)
def test_the_shortest_form(density, form):
    values = np.zeros(100_000, np.float32)
    values[: int(density * 100_000)] = 1.0
    found = thin(values)
    assert found.form == form
    assert found.nbytes == sum(thin_bytes(100_000, density * 100_000))


def test_factors_of_the_note():
    """Against dense float32: values only, and with places (section 3.3)."""
    for density, values_only, with_places in [(0.1, 10, 7.6), (0.05, 20, 12.3), (0.02, 50, 25), (0.01, 100, 50)]:
        values, places = thin_bytes(1e6, density * 1e6)
        assert 4e6 / values == pytest.approx(values_only, rel=0.01)
        assert 4e6 / (values + places) == pytest.approx(with_places, rel=0.01)


@pytest.mark.parametrize(
    "broken",
    [
        Thin("whole", np.ones(3, np.float32), np.zeros(0, np.uint8)),
        Thin("places", np.ones(2, np.float32), np.array([0, 4], np.int32)),
        Thin("places", np.ones(2, np.float32), np.array([1], np.int32)),
        Thin("mask", np.ones(2, np.float32), np.array([0b10000000], np.uint8)),
    ],
)
def test_other_numbers_are_refused(broken):
    with pytest.raises(ValueError, match="numbers"):
        thicken(broken, 4)


@given(st.integers(0, 400), st.floats(0, 1), st.integers(0, 1000))
def test_as_bytes(n, density, seed):
    rng = np.random.default_rng(seed)
    found = thin(np.where(rng.random(n) < density, rng.standard_normal(n), 0).astype(np.float32))
    data = pack(found)
    assert data.nbytes == HEAD + found.nbytes
    again = unpack(np.concatenate([np.zeros(1, np.uint8), data])[1:])  # not aligned
    assert again.form == found.form
    np.testing.assert_array_equal(thicken(again, n), thicken(found, n))


@given(st.integers(0, 400), st.floats(0, 1), st.integers(0, 1000))
def test_what_is_sent_is_known_even_where_it_is_zero(n, density, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(n) < density
    values = rng.integers(0, 2, n).astype(np.float32)
    found = unpack(pack(thin(values, mask)))
    np.testing.assert_array_equal(sent_of(found, n), mask)
    np.testing.assert_array_equal(thicken(found, n), np.where(mask, values, 0))
    assert found.values.shape[0] == mask.sum()


def test_of_what_is_whole_everything_was_sent():
    assert sent_of(thin(np.ones(9, np.float32)), 9).all()
