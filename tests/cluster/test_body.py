"""The cluster body against the local one: other processes' doors, the same numbers."""

import threading

import numpy as np
import pytest
import torch
from parties import locally, on_cluster, party
from tools import job, synthetic

from paceline import checkpoint
from paceline.exchange import shards
from paceline.exchange.desk import Superseded
from paceline.training import train


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def reference(log):
    return locally(job(log), log)


def assert_same(ours, theirs):
    rows, dense, coordinator = ours
    expected_rows, expected_dense, expected = theirs
    assert rows.keys() == expected_rows.keys()
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert torch.equal(dense, expected_dense)
    assert coordinator.machine.account == expected.machine.account


@pytest.mark.parametrize(
    "who", [{"nodes": 1}, {"nodes": 2}, {"nodes": 3}, {"nodes": 4}, {"nodes": 1, "servers": 2, "workers": 2}]
)
def test_sync_is_bitwise_the_local_runtime_on_any_number_of_nodes(log, reference, who):
    config = job(log)
    with party(config, **who) as made:
        assert_same(on_cluster(config, log, made), reference)


@pytest.mark.parametrize("who", [{"nodes": 2}, {"nodes": 3}, {"nodes": 4}, {"nodes": 1, "servers": 1, "workers": 2}])
def test_moved_by_collectives_rows_train_bitwise_as_in_the_local_runtime(log, reference, who):
    config = job(log)
    with party(config, **who, steps=True, exchange="rows") as made:
        assert_same(on_cluster(config, log, made), reference)
        told = made.traffic.per_update(reference[2].machine.account.updates)
        made.office.tend()
        assert made.traffic.per_update(reference[2].machine.account.updates) == told, "a step is counted once"
    assert told["bytes_measured"]["rows"] > 0
    assert told["bytes_measured"]["rows"] == pytest.approx(told["bytes_predicted"]["rows"], rel=0.05)


@pytest.mark.parametrize("steps", [False, True])
def test_rows_kept_in_bf16_are_bitwise_the_local_ones_on_any_number_of_shards(log, steps):
    config = job(log, optimizer__sparse__rows="bf16")
    with party(config, nodes=3, steps=steps, exchange="rows") as made:
        assert_same(on_cluster(config, log, made), locally(config, log))


@pytest.mark.parametrize("nodes", [2, 3])
def test_with_partial_sums_it_trains_the_same_to_rounding(log, reference, nodes):
    config = job(log)
    with party(config, nodes=nodes, steps=True, exchange="substitute") as made:
        rows, dense, coordinator = on_cluster(config, log, made)
        told = made.traffic.per_update(coordinator.machine.account.updates)
    expected_rows, expected_dense, expected = reference
    assert rows.keys() == expected_rows.keys()
    torch.testing.assert_close(dense, expected_dense, rtol=1e-3, atol=1e-4)
    assert coordinator.machine.account == expected.machine.account
    assert told["bytes_measured"]["sums"] == told["bytes_predicted"]["sums"] > 0


KINDS = ("ids", "rows", "row_gradients")


@pytest.mark.parametrize("nodes", [2, 3])
def test_push_and_pull_sends_what_the_cost_rule_predicts_kind_by_kind(log, nodes):
    config = job(log)
    with party(config, nodes=nodes) as made:
        _, _, coordinator = on_cluster(config, log, made)
        told = made.traffic.per_update(coordinator.machine.account.updates)
    measured, predicted = told["bytes_measured"], told["bytes_predicted"]
    assert measured.keys() == predicted.keys() == {*KINDS, "dense", "dense_gradients"}
    for kind in KINDS:
        assert measured[kind] == pytest.approx(predicted[kind], rel=0.05) != 0
    assert measured["rows"] == measured["row_gradients"]
    for kind in ("dense", "dense_gradients"):  # which do not depend on where a batch's rows are
        assert measured[kind] == predicted[kind] > 0


def test_rows_in_bf16_take_half_the_bytes_and_train_nearly_the_same(log, reference):
    config = job(log)
    with party(config, nodes=2, bf16=True) as made:
        rows, dense, coordinator = on_cluster(config, log, made)
        told = made.traffic.per_update(coordinator.machine.account.updates)
    measured, predicted = told["bytes_measured"], told["bytes_predicted"]  # the latter for four bytes a number
    for kind in ("rows", "row_gradients"):
        assert measured[kind] == pytest.approx(predicted[kind] / 2, rel=0.05) != 0
    assert measured["ids"] == pytest.approx(predicted["ids"], rel=0.05)
    expected_rows, expected_dense, expected = reference
    assert coordinator.machine.account == expected.machine.account
    assert rows.keys() == expected_rows.keys()
    ours, theirs = (np.array([of[key] for key in expected_rows]) for of in (rows, expected_rows))
    assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()
    assert 0 < (dense - expected_dense).norm() < 0.1 * expected_dense.norm()


@pytest.mark.parametrize("steps", [False, True])
def test_an_error_while_a_worker_is_answered_is_the_runs(log, steps):
    """What is done when data is read or an update is made runs in whichever thread asked."""
    told = []

    def trace(line):
        told.append(line)
        if len(told) == 200:
            raise OSError("no space left on device")

    with party(job(log), nodes=2, steps=steps, exchange="rows") as made, pytest.raises(OSError, match="no space left"):
        on_cluster(job(log), log, made, trace=trace)


def test_threads_that_come_and_go_share_the_streams(log, monkeypatch):
    """Each evaluation has threads of its own; a shard keeps a thread for every stream that is open."""
    opened = []

    class Counted(shards.Stream):
        def __init__(self, security, address, told):
            super().__init__(security, address, told)
            opened.append(threading.current_thread().name)

    with party(job(log), nodes=2) as made:
        monkeypatch.setattr(shards, "Stream", Counted)
        rows = []

        def read():
            rows.append(made.store.read(np.arange(5)))

        for _ in range(6):
            readers = [threading.Thread(target=read, name="reader") for _ in range(2)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        assert len(rows) == 12
        assert 2 <= opened.count("reader") <= 4  # two at a time, two shards
        with pytest.raises(AttributeError):
            made.store.read("no ids")
        made.store.read(np.arange(5))  # what was broken off in the middle is not used again


@pytest.mark.parametrize("steps", [False, True])
def test_teachers_are_the_same_on_a_cluster(log, tmp_path, steps):
    """Another group's checkpoint, from the second day on: which one it is comes with every lease."""
    options = {"groups": 2, "burn_in": 10**9}
    train(job(log, codistill={**options, "group": 1}), log, tmp_path / "group-1")
    copy = str(checkpoint.committed(tmp_path / "group-1" / "checkpoints")[0])
    config = job(log, codistill={**options, "group": 0})

    def before_day(day, coordinator):
        coordinator.teachers = (copy,) if day else ()

    expected = locally(config, log, before_day=before_day)
    alone = locally(config, log)
    assert not torch.equal(expected[1], alone[1])
    with party(config, nodes=2, workers=1, steps=steps, exchange="rows") as made:
        assert_same(on_cluster(config, log, made, before_day=before_day), expected)


def test_a_shard_never_goes_back_to_an_older_generation(log):
    """A request that a cut network held back comes after those that were sent later."""
    with party(job(log), nodes=2) as made:
        node = made.nodes[0]
        assert node._desk.generation == 1
        made.begin()
        before = node._desk.home
        with pytest.raises(Superseded, match="generation 1 is over; it is 2"):
            node._reset({"generation": 1, "snapshot": None})
        assert (node._desk.generation, node._desk.home) == (2, before)
        node._take({"since": None})
        assert "generation 1 is over" in node._write({"generation": 1, "folder": "nowhere"})["failed"]["text"]
        assert node._copy is not None, "the present generation's copy is still there"
