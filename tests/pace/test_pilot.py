"""The autopilot: predictions worked out by hand, and a simulated cluster that it has to keep fast."""

import heapq
import itertools
import json

import pytest

from paceline import pace as p
from paceline.errors import PaceError
from paceline.pace.pilot import modelled, rounds_rate

B = 32  # samples in a batch


class Cluster:
    """Workers of given times under the real machine; what the pilot is told is true, but for `lie`."""

    def __init__(self, pilot, seconds, overhead=0.0, lie=lambda worker, took: took):
        self.pilot, self.seconds, self.overhead, self.lie = pilot, seconds, overhead, lie
        self.state = p.begin(pilot.pace)
        self.now, self.heap, self.order = 0.0, [], itertools.count()
        self.decisions, self.trace = [], [p.start_line(self.state)]
        for worker in range(len(seconds)):
            self.tell(p.WorkerJoined(f"worker-{worker}"))
        for worker in range(len(seconds)):
            self.ask(worker)

    def tell(self, event):
        self.trace.append(p.event_line(event))
        for command in p.step(self.state, event):
            self.trace.append(p.command_line(command))
            if isinstance(command, p.Grant):
                worker = int(command.worker.removeprefix("worker-"))
                took = self.seconds[worker]
                # A barrier costs everybody something.
                end = self.now + took + (self.overhead if self.state.pace.round is not None else 0.0)
                heapq.heappush(self.heap, (end, next(self.order), worker, command.gradient, took))

    def ask(self, worker):
        self.tell(p.WorkRequested(f"worker-{worker}"))
        while self.state.waiting and not self.state.ready:
            before = len(self.heap)
            self.tell(p.BatchRead(B))
            if len(self.heap) == before:
                break  # a barrier holds them

    def run(self, until):
        """Samples applied meanwhile."""
        applied = self.state.account.applied
        while self.now < until:
            self.now, _, worker, gradient, took = heapq.heappop(self.heap)
            name = f"worker-{worker}"
            self.tell(p.GradientPushed(name, gradient))
            account = self.state.account
            told = self.lie(name, took)
            workers = self.state.steps.keys()
            fact = p.Fact(name, B, told, self.now, account.applied, self.state.version, workers)
            self.trace.append(p.fact_line(fact))
            decision = self.pilot.observe(fact)
            if decision is not None:
                self.trace.append(p.decision_line(decision))
                self.decisions.append((self.now, decision))
                self.tell(p.PaceSwitched(decision.pace))
            self.ask(worker)
        return self.state.account.applied - applied

    @property
    def names(self):
        return [decision.pace.name for _, decision in self.decisions]


def rate(pace, seconds, overhead=0.0):
    """Samples per second that the pace reaches there by itself."""
    cluster = Cluster(p.Pilot([pace, p.asynchronous()], margin=1e9), seconds, overhead)
    cluster.run(40.0)
    applied, now = cluster.state.account.applied, cluster.now
    cluster.run(240.0)
    assert not cluster.decisions
    return (cluster.state.account.applied - applied) / (cluster.now - now)


EVEN, STRAINED = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 5.0]


def test_rounds_by_hand():
    assert rounds_rate([[1.0], [1.0], [1.0], [5.0]], 4, 4) == 4 / 5
    assert rounds_rate([[1.0], [3.0]], 4, 4) == 4 / 3  # three by the first, one by the second
    assert rounds_rate([[2.0]], 3, 3) == 3 / 6
    assert rounds_rate([[1.0], [1.0], [1.0]], 1, 1) == 1.0  # in turn
    # Whoever waits longest is served: the slow one every second round.
    assert rounds_rate([[1.0], [1.0], [29.0]], 2, 2) == pytest.approx(4 / 30, rel=0.5)
    assert rounds_rate([[1.0], [1.0], [1.0], [1.0], [29.0]], 4, 4) == 8 / 30
    # Jitter: each is slow in turn, so every round is.
    assert rounds_rate([[1.0, 3.0], [3.0, 1.0]], 2, 2) == 2 / 3


def test_models_by_hand():
    times = [[1.0], [1.0], [1.0], [5.0]]
    assert modelled(p.sync(4), times) == 4 / 5
    # 3 of 4 a second; then the first one is early and takes the fourth place, which is void: 2 seconds; and so on.
    assert modelled(p.backup_workers(3, 1), times) == pytest.approx(rate(p.backup_workers(3, 1), STRAINED) / B, rel=0.1)
    assert modelled(p.gba(4), times) == pytest.approx(3.2)
    assert modelled(p.asynchronous(), times) == pytest.approx(3.2)
    assert modelled(p.bounded_staleness(2), times) == 4 / 5


@pytest.mark.parametrize(("pace", "expected"), [(p.sync(4), 0.8 * B), (p.asynchronous(), 3.2 * B)])
def test_the_simulated_cluster_is_as_fast_as_the_model_says(pace, expected):
    assert rate(pace, STRAINED) == pytest.approx(expected, rel=0.03)


def test_it_leaves_sync_for_gba_where_a_worker_is_slow_and_comes_back_when_it_is_not():
    pilot = p.Pilot([p.sync(4), p.gba(4)])
    cluster = Cluster(pilot, list(EVEN))
    cluster.run(100.0)
    assert cluster.names == []
    cluster.seconds[3] = 5.0
    cluster.run(400.0)
    assert cluster.names == ["gba"]
    assert "worker-3 takes 5.0 times as long" in cluster.decisions[0][1].reason
    cluster.seconds[3] = 1.0
    cluster.run(500.0)
    assert cluster.names == ["gba", "sync"]


def test_nearly_the_throughput_of_one_who_knows_and_no_flapping():
    pilot = p.Pilot([p.sync(4), p.gba(4)])
    cluster = Cluster(pilot, list(EVEN), overhead=0.02)
    applied, perfect, phase = 0, 0.0, 800.0
    best = {name: max(rate(p.sync(4), times, 0.02), rate(p.gba(4), times, 0.02))
            for name, times in (("even", EVEN), ("strained", STRAINED))}  # fmt: skip
    for turn in range(8):
        cluster.seconds[:] = STRAINED if turn % 2 else EVEN
        applied += cluster.run((turn + 1) * phase)
        perfect += best["strained" if turn % 2 else "even"] * phase
    assert applied >= 0.95 * perfect
    assert len(cluster.decisions) == 7
    assert cluster.names == ["gba", "sync", "gba", "sync", "gba", "sync", "gba"]


def test_a_small_gain_is_not_worth_a_switch_and_noise_makes_no_flapping():
    noise = itertools.cycle([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.08])
    seconds = [1.0, 1.0, 1.0, 1.06]
    cluster = Cluster(p.Pilot([p.sync(4), p.gba(4)], margin=0.3), seconds)
    for until in range(10, 2000, 3):
        seconds[next(noise_at) % 4] = next(noise) if until % 2 else seconds[0]
        cluster.run(float(until))
    assert len(cluster.decisions) <= 1


noise_at = itertools.count()


def test_wrong_reports_are_found_out():
    """A worker that says it is slow and is not: gba is tried, brings nothing, and is not tried again."""
    pilot = p.Pilot([p.sync(4), p.gba(4)])
    cluster = Cluster(pilot, list(EVEN), lie=lambda worker, took: took * (6.0 if worker == "worker-3" else 1.0))
    cluster.run(1500.0)
    assert cluster.names == ["gba", "sync"]
    cluster.seconds[:] = [1.0, 1.0, 9.0, 1.0]  # what is true comes through nevertheless
    cluster.run(3000.0)
    assert cluster.names == ["gba", "sync", "gba"]


def test_it_chooses_the_fastest_of_several():
    pilot = p.Pilot([p.sync(4), p.backup_workers(4, 1), p.gba(4)])
    cluster = Cluster(pilot, [1.0, 1.0, 1.0, 1.0, 30.0])
    cluster.run(600.0)
    assert cluster.names == ["gba"]


def test_time_in_which_nobody_works_does_not_count():
    pilot = p.Pilot([p.sync(4), p.gba(4)])
    cluster = Cluster(pilot, list(EVEN))
    cluster.run(60.0)
    for _ in range(20):
        pilot.pause()
        cluster.now += 1000.0  # an evaluation
        cluster.heap = [(end + 1000.0, *rest) for end, *rest in cluster.heap]
        heapq.heapify(cluster.heap)
        cluster.run(cluster.now + 30.0)
    assert cluster.names == []


def test_workers_come_and_go():
    pilot = p.Pilot([p.sync(3), p.gba(3)])
    cluster = Cluster(pilot, list(STRAINED))
    cluster.run(100.0)
    assert cluster.names == ["gba"]
    cluster.tell(p.WorkerLeft("worker-3"))
    cluster.heap = [entry for entry in cluster.heap if entry[2] != 3]
    heapq.heapify(cluster.heap)
    cluster.run(300.0)
    assert cluster.names == ["gba", "sync"]


def test_seats_of_one_process_are_one_worker():
    pilot = p.Pilot([p.sync(2), p.gba(2)])
    names = ["worker-0", "worker-0+1", "worker-1", "worker-1+1"]
    for n in range(200):
        pilot.observe(p.Fact(names[n % 4], B, 1.0, n * 0.5, n * B, n, names))
    assert pilot.to_json()["times"].keys() == {"worker-0", "worker-1"}
    assert pilot.to_json()["efficiency"] == {"sync": pytest.approx(1.0)}


def test_a_replay_of_the_trace_decides_the_same():
    def fresh():
        return p.Pilot([p.sync(4), p.gba(4)])

    cluster = Cluster(fresh(), list(EVEN))
    for turn in range(4):
        cluster.seconds[3] = 5.0 if turn % 2 else 1.0
        cluster.run(150.0 * (turn + 1))
    assert len(cluster.decisions) >= 3
    trace = cluster.trace
    assert p.replay(trace, fresh()).version == cluster.state.version
    assert p.replay(trace).version == cluster.state.version  # without it, facts and decisions are passed over
    forged = [line.replace('"pace": "gba"', '"pace": "sync"') if line.startswith("!") else line for line in trace]
    with pytest.raises(PaceError, match="recorded"):
        p.replay(forged, fresh())
    with pytest.raises(PaceError, match="recorded"):
        p.replay([line for line in trace if not line.startswith("!")], fresh())


def test_what_a_checkpoint_keeps_decides_the_same():
    pilot = p.Pilot([p.sync(4), p.gba(4)])
    cluster = Cluster(pilot, list(STRAINED))
    cluster.run(100.0)
    assert cluster.names == ["gba"]
    told = json.loads(json.dumps(pilot.to_json()))
    again = p.Pilot([p.sync(4), p.gba(4)])
    again.restore(told)
    assert again.pace.name == "gba"
    assert again.to_json() == told
    other = p.Pilot([p.asynchronous(), p.sync(4)])
    other.restore(told)
    assert other.pace.name == "async"
    assert other.to_json()["efficiency"].keys() == {"sync"}
