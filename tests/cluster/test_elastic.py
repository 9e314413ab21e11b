"""Workers that join and leave while a job runs, in threads of this process over real connections."""

import threading

import numpy as np
import pytest
from parties import locally, on_cluster, party
from tools import job, synthetic, train

from paceline import pace as p
from paceline.cluster.traffic import Traffic
from paceline.errors import ConfigError, RunDirError
from paceline.staffing import ask_workers


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def reference(log):
    return locally(job(log), log)


def grants(trace):
    """{gradient: workers that it was granted to}."""
    found = {}
    for line in trace:
        if line.startswith("< grant "):
            _, _, worker, gradient, *_ = line.split()
            found.setdefault(gradient, []).append(worker)
    return found


def assert_undisturbed(ours, theirs, trace):
    """Bitwise the same parameters, and no batch was issued twice."""
    rows, dense, coordinator = ours
    expected_rows, expected_dense, expected = theirs
    assert rows.keys() == expected_rows.keys()
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert dense.equal(expected_dense)
    assert coordinator.machine.account == expected.machine.account
    assert all(len(workers) == 1 for workers in grants(trace).values())


class Gates:
    """The data waits at each of some numbers of samples until the step that belongs to it is done (watch: called ten
    times a second, where no lock is held). So what happens there happens under way, however slow the machine is."""

    def __init__(self, gates):
        self.gates, self.open, self.read = gates, [threading.Event() for _ in gates], 0

    def through(self, batches):
        for batch in batches:
            for (samples, _), opened in zip(self.gates, self.open, strict=True):
                if self.read >= samples:
                    opened.wait()
            self.read += batch.samples
            yield batch

    def watch(self, coordinator):
        for (samples, done), opened in zip(self.gates, self.open, strict=True):
            if not opened.is_set():
                if self.read >= samples and done():
                    opened.set()
                return


def send(made, away):
    made.office.staff(away)
    return True


def is_away(made, away):
    """Whether they are gone and the rest is here. (Some batches after they were sent: they may have been reading.)"""
    joined, lingering = made.office.staff(away)
    return not lingering and len(joined) == made.workers - len(away)


def test_a_helper_that_leaves_steps_of_a_sync_run_costs_none(log, reference):
    """In the middle of a day, by collectives: its last step counts, and the next has a new group."""
    config, trace = job(log), []
    with party(config, nodes=2, workers=1, steps=True, exchange="rows") as made:
        gates = Gates([(700, lambda: True)])

        def watch(coordinator):
            before = gates.open[0].is_set()
            gates.watch(coordinator)
            if gates.open[0].is_set() and not before:
                made.office.staff({"worker-2"})  # gets its turn while the step that waited for data is under way

        ours = on_cluster(config, log, made, watch=watch, through=gates.through, trace=trace.append)
    assert_undisturbed(ours, reference, trace)
    left = trace.index("> left worker-2")
    assert any(line.startswith("< grant worker-0") for line in trace[left:]), "the others went on"
    assert not any("worker-2" in line for line in trace[left + 1 :])


def test_a_helper_that_leaves_a_sync_run_by_push_and_pull_costs_nothing(log, reference):
    config, trace = job(log), []
    with party(config, nodes=2, workers=1) as made:
        gates = Gates([(1000, lambda: send(made, {"worker-2"})), (1500, lambda: is_away(made, {"worker-2"}))])
        ours = on_cluster(config, log, made, trace=trace.append, watch=gates.watch, through=gates.through)
    assert_undisturbed(ours, reference, trace)


def test_a_helper_that_joins_a_sync_run_has_a_part_in_the_next_step(log, reference):
    """Before the second of three days, by collectives."""
    config, trace = job(log), []
    with party(config, nodes=2, steps=True, exchange="rows") as made:

        def before_day(day, coordinator):
            if day == 1:
                worker = made.hire()
                with made.office._changed:
                    assert made.office._changed.wait_for(lambda: worker in made.office.staff(set())[0], 60)

        ours = on_cluster(config, log, made, before_day=before_day, trace=trace.append)
    assert_undisturbed(ours, reference, trace)
    assert any(workers == ["worker-2"] for workers in grants(trace).values())


def test_a_gba_run_gains_a_helper_and_loses_it_in_the_middle_of_a_day(log):
    """In between the others are sent away, so it is sure to have worked."""
    config, trace = job(log), []
    with party(config, nodes=2) as made:
        nodes = {"worker-0", "worker-1"}
        gates = Gates(
            [
                (700, lambda: made.hire() == "worker-2"),
                (800, lambda: made.office.staff(set())[0] == ["worker-0", "worker-1", "worker-2"]),
                (1000, lambda: send(made, nodes)),
                (1500, lambda: is_away(made, nodes)),
                (2800, lambda: send(made, {"worker-2"})),
                (3300, lambda: is_away(made, {"worker-2"})),
            ]
        )
        _, _, coordinator = on_cluster(
            config,
            log,
            made,
            pace=p.gba(config.gradients, 4),
            trace=trace.append,
            watch=gates.watch,
            through=gates.through,
        )
    account = coordinator.machine.account
    assert account.read == 6000 == account.applied + account.dropped
    granted = grants(trace)
    assert all(len(workers) == 1 for workers in granted.values()), "no batch was issued twice"
    helped = [gradient for gradient, (worker,) in granted.items() if worker.startswith("worker-2")]
    assert len(helped) * config.local_batch > 1000
    updates = [line.split()[2:] for line in trace if line.startswith("< apply ")]
    assert len(updates) == account.updates


@pytest.mark.parametrize(
    ("changes", "number", "error", "words"),
    [
        ({"cluster": {"nodes": 2}}, -1, ConfigError, "workers: -1 is no number of helpers; give one from 0 to 65,536"),
        ({"cluster": {"nodes": 2}}, 65_537, ConfigError, "65537 is no number of helpers"),
        ({"cluster": {"nodes": 0, "servers": 1, "workers": 2}}, 0, ConfigError, "nobody would compute"),
        ({"cluster": {"nodes": 2}}, 1, RunDirError, "nothing is running there; give cluster.workers="),
        ({"workers": 2}, 1, RunDirError, "its job has no `cluster:`"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, log, changes, number, error, words):
    changes = changes if "workers" in changes else {**changes, "workers": 2}
    (tmp_path / "config.yaml").write_text(job(log, **changes).to_yaml())
    with pytest.raises(error, match=words):
        ask_workers(tmp_path, number)
    assert not (tmp_path / "requests").exists()


def test_metrics_tell_how_many_workers_there_are(tmp_path, log):
    assert train(job(log, workers=3), log, tmp_path / "run")["workers"] == 3


def test_bytes_of_a_worker_and_update_count_the_workers_that_there_were():
    traffic = Traffic([10], 1, 1, 2, 4)
    traffic.add_step({"rows": 1000.0}, {"rows": 500.0})
    assert traffic.per_update(5)["bytes_measured"] == {"rows": 100.0}
    traffic.staff(3, 5)
    traffic.staff(3, 6)
    assert traffic.per_update(10)["bytes_measured"] == {"rows": 1000 / (5 * 2 + 5 * 3)}
    assert traffic.per_update(10)["bytes_predicted"] == {"rows": 500 / (5 * 2 + 5 * 3)}
