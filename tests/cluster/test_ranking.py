"""A job of interactions on a cluster's parties: the same numbers as in the local runtime, by each route."""

import pytest
from parties import locally, on_cluster, party
from test_body import assert_same
from test_ranking_runs import interactions_log, job


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return interactions_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def reference(log):
    return locally(job(interactions__epochs=2), log)


@pytest.mark.parametrize("how", [{}, {"steps": True, "exchange": "rows"}, {"steps": True, "exchange": "auto"}], ids=str)
def test_sync_is_bitwise_the_local_runtime(log, reference, how):
    """Push and pull, and collectives; no part of the model can be substituted by partial sums, so rows travel."""
    config = job(interactions__epochs=2)
    with party(config, nodes=2, **how) as made:
        assert_same(on_cluster(config, log, made), reference)
