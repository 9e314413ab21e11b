"""Packets between machines vanish: the job goes on where it can, and says what it waits for where it cannot."""

import json

import pytest
from machines import Machines
from namespaces import NEEDED, Network, allowed
from tools import job, synthetic

from paceline.cluster.reach import GRACE, PATIENCE, Reach
from paceline.exchange.pulse import SILENCE
from paceline.training import train

ROWS = 6000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), ROWS)


@pytest.fixture
def network():
    if not allowed():
        pytest.skip(NEEDED)
    with Network(3) as made:
        yield made


def end_of(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_two_nodes_that_lose_each_other_for_good_cost_no_sample_of_a_run_in_steps(tmp_path, log, network):
    """Under sync all processes take part in every step; without a fall-back the same group would be formed for ever."""
    run = tmp_path / "run"
    config = job(log, workers=3, cluster={"nodes": 3, "exchange": "rows"})
    cut = []

    def on_rows(rows):
        if rows >= 1500 and not cut:
            network.cut(1, 2)
            cut.append(rows)

    with Machines(network, config, tmp_path, run) as made:
        came, _ = made.run(on_rows=on_rows)
    assert cut
    assert came == "end", "no state was lost"
    end = end_of(run)
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    assert any("node-1 cannot reach shard 2" in said for said in made.said), made.said
    undisturbed = train(job(log), log, tmp_path / "undisturbed")
    assert end["auc"] == pytest.approx(undisturbed["auc"], abs=1e-4)


def test_a_machine_that_nobody_reaches_is_named_and_the_run_goes_on_once_it_is_back(tmp_path, log, network):
    """Push and pull: the shard's machine vanishes in the middle of the day, is still away in the next generation, and
    comes back for the third."""
    run = tmp_path / "run"
    config = job(log, pace__name="gba", workers=3, cluster={"nodes": 3})
    cut = []

    def on_rows(rows):
        if rows >= 3000 and not cut:
            network.isolate(2)
            cut.append(rows)

    with Machines(network, config, tmp_path, run) as made:
        for resume in (False, True):
            came, (why, unreachable) = made.run(resume, on_rows)
            assert came == "lost"
            assert "silent" in why or "lost" in why
            assert made.shards[2] in unreachable
        network.rejoin(2)
        came, told = made.run(True)
    assert came == "end", told
    end = end_of(run)
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_who_reaches_whom_is_told_once_and_forgotten_with_the_process():
    clock = Clock()
    reach = Reach(["a:1", "b:2"], clock)
    assert reach.hear("node-0", True, [])
    assert not reach.hear("node-0", True, [])
    assert reach.hear("node-1", True, ["a:1"])
    assert reach.apart() == {"node-1": ("a:1",)}
    assert reach.news().startswith("node-1 cannot reach shard 0 at a:1:")
    assert reach.news() is None
    reach.hear("node-1", True, [])
    assert reach.news() == "all processes reach each other again"
    reach.hear("node-1", True, ["a:1"])
    reach.news()
    clock.now += SILENCE + 1
    assert reach.apart() == {}
    assert reach.news() is None, "that it is not heard of is no sign that it reaches others"


def test_a_run_is_stuck_when_no_worker_reaches_all_shards():
    clock = Clock()
    reach = Reach(["a:1", "b:2", "c:3"], clock)
    told = {"node-0": ["b:2"], "node-1": ["a:1", "c:3"], "node-2": ["b:2"]}

    def hear(**changes):
        for name, unreachable in {**told, **changes}.items():
            reach.hear(name, True, unreachable)

    clock.now = GRACE - 1
    hear()
    assert reach.stuck() is None, "they may reach each other again"
    assert reach.stuck(0.0).unreachable == ("b:2",)
    clock.now = GRACE + 1
    hear()
    assert reach.stuck().unreachable == ("b:2",), "most cannot reach it"
    reach.hear("server-0", False, [])
    assert reach.stuck() is not None, "a server does not work"
    reach.hear("server-1", False, ["a:1"])
    assert reach.idle() == 3
    reach.hear("node-2", True, [])
    assert reach.stuck() is None
    clock.now += PATIENCE + 1
    assert "no worker was heard of" in str(reach.stuck())
