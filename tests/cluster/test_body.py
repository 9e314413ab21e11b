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
