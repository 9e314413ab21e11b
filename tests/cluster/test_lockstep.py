"""Switching between steps of collectives and push and pull, and who is lost in a step."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parties import locally, on_cluster, party
from tools import job, synthetic

from paceline import pace as p
from paceline.assembly import assemble
from paceline.cluster.lockstep import TRIES, Lockstep, Member, Result
from paceline.cluster.node import Node
from paceline.cluster.office import Office
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import TrainingError
from paceline.exchange.security import Security
from paceline.runtimes.coordinator import Coordinator


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


@pytest.mark.parametrize("exchange", ["rows", "substitute"])
def test_the_pace_changes_under_way_and_the_account_closes(log, exchange):
    """sync -> gba -> sync -> async -> gba, each in the middle of a day: steps begin and end, no sample is lost."""
    config = job(log)
    m = config.gradients
    plan = [(600, p.gba(m)), (1700, p.sync(m)), (3100, p.asynchronous()), (4500, p.gba(m))]
    with party(config, nodes=3, steps=True, exchange=exchange) as made:
        left = list(plan)

        def before_read(coordinator):
            if left and coordinator.machine.account.read >= left[0][0]:
                coordinator.switch(left.pop(0)[1])

        rows, dense, coordinator = on_cluster(config, log, made, before_read=before_read)
    account = coordinator.machine.account
    assert not left
    assert account.read == 6000 == account.applied + account.dropped
    assert len(coordinator.pauses) == 4
    assert torch.isfinite(dense).all()
    assert len(rows) > 1000
    told = made.traffic.per_update(account.updates)["bytes_measured"]
    assert told["row_gradients"] > 0, "push and pull took place"
    assert told["norms" if exchange == "substitute" else "rows"] > 0, "and steps"


def test_a_worker_that_dies_in_steps_costs_nothing(log):
    """A process without a shard vanishes between two steps: the others form a new group, and the numbers are those of
    an undisturbed run, bit for bit."""
    config = job(log)
    expected_rows, expected_dense, _ = locally(config, log)
    with party(config, nodes=2, workers=1, steps=True, exchange="rows") as made:
        helper = made.nodes[-1]

        def before_read(coordinator):
            if coordinator.machine.account.read >= 1500:
                helper.end()

        rows, dense, coordinator = on_cluster(config, log, made, before_read=before_read)
        assert made.office.workers() == ["worker-0", "worker-0+1", "worker-1", "worker-1+1"]
    assert coordinator.machine.account.read == coordinator.machine.account.applied == 6000
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert dense.equal(expected_dense)


def test_who_comes_early_waits_for_the_others(monkeypatch):
    """Else who computes what would depend on whose process started first; later on the others go on without one."""
    hub, coordinator = Office(Security()), SimpleNamespace(machine=p.begin(p.sync(2)))
    notes = []
    hub.note = notes.append
    try:
        hub.begin(1, shards=2)
        members = hub._lockstep.members
        members["node-0"] = Member("node-0", 0, "worker-0")
        assert hub._collective(coordinator), "one of two is here"
        members["node-1"] = Member("node-1", 1, "worker-1")
        assert hub._collective(coordinator)
        del members["node-1"]
        assert not hub._collective(coordinator), "it has been here"
        assert not notes
        hub.begin(2, shards=2)
        hub._lockstep.members["node-0"] = members["node-0"]
        monkeypatch.setattr("paceline.cluster.office.PATIENCE", -1.0)
        assert not hub._collective(coordinator), "nobody is waited for for ever"
        assert notes == ["the process of shard 1 does not come to steps of all: workers push and pull meanwhile"]
    finally:
        hub.shutdown()


class Settled:
    """Carries out nothing; remembers what was applied."""

    def __init__(self):
        self.applied = []

    def apply(self, command):
        self.applied.append([part.gradient for part in command.parts])

    def drop(self, number):
        raise AssertionError(f"gradient {number} was dropped")


def test_who_is_dismissed_in_the_middle_of_a_step_takes_part_to_its_end(log):
    """Its gradient counts, no lease is issued twice, and the next step is of those who stay."""
    made = assemble(job(log), log, replicas=1)
    source = day_batches(made.log, made.days[0], Plan(0, 32, moments=no_moments(len(made.schema.dense))))
    settled = Settled()
    coordinator = Coordinator(p.begin(p.sync(3)), settled, lambda line: None)
    coordinator.open(source)
    lockstep = Lockstep(shards=2)
    for name, shard in (("node-0", 0), ("node-1", 1), ("helper-2", None)):
        worker = f"worker-{name[-1]}"
        lockstep.members[name] = Member(name, shard, worker, Result(broken=False))

    def advance(away=frozenset()):
        return lockstep.advance(coordinator, lambda: True, None, away)

    def come_back():
        for member in lockstep.members.values():
            lease, member.order = member.order.lease, None
            member.result = Result(False, 0.5, 1.0, torch.zeros(0) if lease is not None else None)

    assert advance()
    first = [member.order.lease.gradient for member in lockstep.members.values()]
    assert sorted(first) == [0, 1, 2]
    lockstep.dismiss({"worker-2"}, coordinator)
    assert lockstep.members.keys() == {"node-0", "node-1", "helper-2"}, "the step is under way"
    come_back()
    assert advance({"worker-2"})
    assert settled.applied == [[0, 1, 2]]
    assert lockstep.members.keys() == {"node-0", "node-1"}
    assert coordinator.machine.account.lost_leases == 0
    assert not coordinator.is_here("worker-2")
    orders = [member.order for member in lockstep.members.values()]
    assert {order.names for order in orders} == {("node-0", "node-1")}
    assert sorted(order.lease.gradient for order in orders) == [3, 4]
    source.close()


def test_who_is_dismissed_between_steps_leaves_at_once(log):
    lockstep = Lockstep(shards=1)
    lockstep.members["node-0"] = Member("node-0", 0, "worker-0")
    lockstep.members["helper-1"] = Member("helper-1", None, "worker-1")
    lockstep.dismiss({"worker-1"}, None)
    assert lockstep.members.keys() == {"node-0"}


def test_where_no_group_can_form_processes_push_and_pull_after_three_steps(log, monkeypatch):
    """As behind a firewall that lets Flight through and not gloo: the run says so once, the numbers are the same."""
    config = job(log)
    expected_rows, expected_dense, _ = locally(config, log)
    tried, said = [], []

    def connect(host, port, name, rank, size, timeout, address, gpu):
        tried.append(name)
        raise TrainingError(f"exchange: rank {rank} of {size} could not join the group {name}: refused")

    monkeypatch.setattr("paceline.cluster.stepping.connect", connect)
    with party(config, nodes=2, steps=True, exchange="rows") as made:
        made.office.note = said.append
        rows, dense, coordinator = on_cluster(config, log, made)
    assert len(set(tried)) == TRIES
    assert len(said) == 1
    assert "could not join the group" in said[0]
    assert "cluster.exchange=push_pull" in said[0]
    assert coordinator.machine.account.read == coordinator.machine.account.applied == 6000
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert dense.equal(expected_dense)


class Alternating(p.Pilot):
    """Decides for the other pace with every so many gradients, whatever it is told; remembers who told."""

    def __init__(self, paces, every):
        super().__init__(paces)
        self.every, self.facts = every, []

    def observe(self, fact):
        self.facts.append(fact)
        if len(self.facts) % self.every:
            return None
        self.chosen = 1 - self.chosen
        return p.Decision(self.pace, 1.0, {}, "it is time")


def test_an_autopilot_may_decide_in_the_middle_of_a_step_s_gradients(log):
    """sync by steps, gba by push and pull: a decision falls between the gradients of one step, again and again."""
    config = job(log)
    pilot = Alternating([p.sync(config.gradients), p.gba(config.gradients)], every=22)
    with party(config, nodes=3, steps=True, exchange="rows") as made:

        def before_day(day, coordinator):
            coordinator.pilot = pilot

        _, dense, coordinator = on_cluster(config, log, made, before_day=before_day)
    account = coordinator.machine.account
    assert account.read == 6000 == account.applied + account.dropped
    assert len(coordinator.decisions) == len(pilot.facts) // 22 >= 7
    assert torch.isfinite(dense).all()
    assert all(fact.seconds > 0 for fact in pilot.facts), "steps and seats both tell how long they computed"
    told = made.traffic.per_update(account.updates)["bytes_measured"]
    assert told["row_gradients"] > 0
    assert told["rows"] > 0


def test_while_steps_wait_for_data_others_are_answered(log):
    """The source stops in the middle of a day until somebody outside has asked the office."""
    config = job(log)
    expected_rows, expected_dense, _ = locally(config, log)
    with party(config, nodes=2, steps=True, exchange="rows") as made:
        waiting, answered = threading.Event(), threading.Event()

        def through(source):
            for number, batch in enumerate(source):
                if number == 30:
                    waiting.set()
                    assert answered.wait(60), "the office was not answered: it holds its lock while it waits for data"
                yield batch

        def ask():
            assert waiting.wait(60)
            assert made.office.workers()
            assert made.office.staff(set())[1] == []
            answered.set()

        asking = threading.Thread(target=ask)
        asking.start()
        rows, dense, coordinator = on_cluster(config, log, made, through=through)
        asking.join()
    assert coordinator.machine.account.read == coordinator.machine.account.applied == 6000
    for key, values in rows.items():
        np.testing.assert_array_equal(values, expected_rows[key])
    assert dense.equal(expected_dense)


def test_nobody_waits_for_ever_for_a_process_that_does_not_come_to_steps(log, monkeypatch):
    """Its shard answers and its worker works, but its rank does not reach the coordinator."""
    config = job(log)
    expected_rows, expected_dense, _ = locally(config, log)
    said = []
    rank = Node._rank
    monkeypatch.setattr("paceline.cluster.office.PATIENCE", 0.5)
    monkeypatch.setattr(Node, "_rank", lambda self, *at: None if self.spec.shard == 1 else rank(self, *at))
    with party(config, nodes=3, steps=True, exchange="rows") as made:
        made.office.note = said.append
        rows, dense, coordinator = on_cluster(config, log, made)
    assert len(said) == 1
    assert "shard 1 does not come" in said[0]
    assert coordinator.machine.account.applied == 6000
    assert torch.equal(dense, expected_dense)
    for key, values in expected_rows.items():
        np.testing.assert_array_equal(rows[key], values)
