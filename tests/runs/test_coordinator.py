"""The coordinator: who leaves it, when, and what that does to what is out."""

from types import SimpleNamespace

import pytest

from paceline import pace as p
from paceline.runtimes.coordinator import Coordinator, Stopped


class Settler:
    def apply(self, command):
        return None

    def drop(self, number):
        raise AssertionError(f"gradient {number} was dropped")


@pytest.fixture
def trace():
    return []


@pytest.fixture
def coordinator(trace):
    """Two workers with a lease each, of a round of two, and a third that waits for the next round."""
    made = Coordinator(p.begin(p.sync(2)), Settler(), trace.append)
    made.open(iter([SimpleNamespace(samples=32, skipped=(), following=None)] * 4))
    for worker in ("worker-0", "worker-1", "worker-2"):
        made.join(worker)
        made.request(worker)
        while made.read_next():
            pass
    return made


def grants(trace):
    return [line.split()[2] for line in trace if line.startswith("< grant")]


def test_the_lease_of_who_leaves_goes_to_who_waits(coordinator, trace):
    assert grants(trace) == ["worker-0", "worker-1"]
    coordinator.leave("worker-0")
    assert grants(trace) == ["worker-0", "worker-1", "worker-2"]
    assert dict(coordinator.grants())["worker-2"].gradient == 0
    assert coordinator.machine.account.lost_leases == 1


def test_after_a_failure_nothing_is_given_to_anybody(coordinator, trace):
    """Of an interrupted run its trace says what it did, not what became of workers that were sent home."""
    before = [*trace]
    coordinator.fail(KeyboardInterrupt())
    for worker in ("worker-0", "worker-1", "worker-2"):
        coordinator.leave(worker)
        assert not coordinator.is_here(worker)
    assert trace == before
    assert coordinator.machine.account.lost_leases == 0
    assert coordinator.telemetry.present.keys() == {"worker-0", "worker-1", "worker-2"}
    with pytest.raises(Stopped):
        coordinator.lease("worker-0")


def test_only_who_waits_leaves_when_the_waiting_are_to_leave(coordinator, trace):
    assert not coordinator.leave_waiting("worker-0"), "it has a lease"
    assert coordinator.is_here("worker-0")
    assert coordinator.leave_waiting("worker-2")
    assert not coordinator.is_here("worker-2")
    assert not coordinator.leave_waiting("worker-2"), "it is not here"
    assert coordinator.machine.account.lost_leases == 0
