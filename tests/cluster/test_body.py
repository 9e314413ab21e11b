"""The cluster body against the local one: other processes' doors, the same numbers."""

import numpy as np
import pytest
import torch
from parties import locally, on_cluster, party
from tools import job, synthetic


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
