"""Several threads on the rows of one update: the same bits as one, and no error is lost."""

import os
import threading

import numpy as np
import pytest
import torch

from paceline.params import helpers as room
from paceline.params.helpers import Helpers, no_helpers
from paceline.params.row_optimizers import BUILT_IN
from paceline.params.sparse import Clock
from paceline.params.table import REDUCE, RowGradient, Table

ROWS = 3 * room._WORTH + 17


def flush():
    torch.set_flush_denormal(True)


@pytest.fixture
def flushed():
    """Denormal numbers are flushed in this thread, too, as they are in a worker's."""
    flush()
    yield
    torch.set_flush_denormal(False)


def trained(name, threads, reduce, law):
    """Ids, weights, slots, clocks and row staleness after five updates out of three parts each."""
    rng = np.random.default_rng(4)
    table = Table(np.full(5, 0.1, np.float32), BUILT_IN[name](), seed=2, helpers=Helpers(threads, flush))
    numbers = table.find_or_insert(np.arange(ROWS) * 7 - 50_000)
    updated = []
    for update in range(1, 6):
        parts = []
        for token in (0, update - 1, update):
            rows = rng.permutation(numbers)[: ROWS - 100 * token]
            gradients = rng.normal(size=(len(rows), 5)).astype(np.float32)
            counts = np.zeros(len(rows), np.int32)
            applied = table.applied(rows)  # where an optimizer asks what a gradient missed: half of what was there
            missed = None if applied is None else applied / 2
            parts.append(RowGradient(rows, gradients, 1 / 3, token, 0.75, counts, missed))
        updated.append(table.apply(parts, Clock(update, 1000 * update), 3, REDUCE[reduce], law, on_step=len(law) > 0))
    (block,) = table.blocks()
    return [block.ids, block.weights, block.slots, block.clocks, table.ages, np.array([table.squares]), updated]


@pytest.mark.parametrize("reduce", sorted(REDUCE))
@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam", "sgd", "adagrad_swap", "adagrad_delay"])
def test_the_number_of_threads_changes_no_bit(name, reduce, flushed):
    law = np.array([1.0, 0.5, 0.25], np.float32) if name == "adam" else np.zeros(0, np.float32)
    alone = trained(name, 1, reduce, law)
    for threads in (2, 3):
        for one, other in zip(alone, trained(name, threads, reduce, law), strict=True):
            np.testing.assert_array_equal(other, one)


def test_stretches_make_up_the_whole_and_small_work_is_not_divided():
    found = Helpers(3, flush).each(lambda start, stop: (start, stop, threading.get_ident()), ROWS)
    assert [start for start, *_ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert found[-1][1] == ROWS
    assert len(found) == 3
    assert found[0][2] == threading.get_ident()
    assert threading.get_ident() not in {found[1][2], found[2][2]}
    few = room._WORTH
    assert Helpers(3, flush).each(lambda start, stop: (start, stop), few) == [(0, few)]
    assert no_helpers().each(lambda start, stop: (start, stop), ROWS) == [(0, ROWS)]
    assert no_helpers().each(lambda start, stop: (start, stop), 0) == [(0, 0)]


def test_they_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=60)
    assert len(Helpers(3, flush).each(lambda start, stop: meeting.wait(), ROWS)) == 3


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_is_raised_once_the_others_are_done(bad):
    """Who fails does so first; the others end only after that."""
    done, failed = [], threading.Event()

    def work(start, stop):
        if round(3 * start / ROWS) == bad:
            failed.set()
            raise ValueError(f"in the share from {start}")
        assert failed.wait(60)
        os.sched_yield()
        done.append(start)

    with pytest.raises(ValueError, match="in the share"):
        Helpers(3, flush).each(work, ROWS)
    assert len(done) == 2
