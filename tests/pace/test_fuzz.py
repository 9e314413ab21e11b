"""Random paces, speeds, switches, joins and losses: nothing is lost, nobody is stuck, nothing is too stale."""

import random

import pytest
from driver import Driver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline import pace as p
from paceline.errors import PaceError

weights = st.one_of(
    st.none(),
    st.builds(
        p.Weight,
        st.sampled_from(["power", "log", "relative", "inverse", "none"]),
        st.floats(1.5, 8.0),
        st.sampled_from(["gradient", "row"]),
        st.sampled_from(["gradient", "step"]),
    ),
)
paces = st.one_of(
    st.builds(p.sync, st.integers(1, 9)),
    st.builds(p.asynchronous, weights),
    st.builds(p.bounded_staleness, st.integers(0, 4)),
    st.builds(p.backup_workers, st.integers(1, 8), st.integers(0, 4)),
    st.builds(p.bulk_synchronous, st.integers(1, 9)),
    st.builds(p.damped, st.integers(1, 9)),
    st.builds(
        p.gba,
        st.integers(1, 9),
        st.one_of(st.none(), st.integers(0, 5)),
        st.sampled_from(["data", "version"]),
    ),
    # Points between the published ones are legal too.
    st.builds(
        lambda buffer, extra, limit, tokens, holds, weight: p.Pace(
            "custom", buffer, None if extra is None else buffer + extra, None, limit, tokens, holds, weight
        ),
        st.integers(1, 6),
        st.one_of(st.none(), st.integers(0, 4)),
        st.one_of(st.none(), st.integers(0, 4)),
        st.sampled_from(["data", "version"]),
        st.booleans(),
        weights,
    ),
)


def random_run(pace: p.Pace, others: list[p.Pace], workers: int, seed: int, events: int, days: bool = True) -> Driver:
    rng = random.Random(seed)
    driver = Driver(p.begin(pace))
    names = [f"w{i}" for i in range(workers)]
    born = workers
    for name in names:
        driver.send(p.WorkerJoined(name))
    speeds = {name: rng.choice([1.0, 1.0, 1.0, 0.2]) for name in names}
    for _ in range(events):
        roll = rng.random()
        live = sorted(driver.state.steps)
        if roll < 0.03 and others:
            driver.send(p.PaceSwitched(rng.choice(others)))
        elif roll < 0.05:
            speeds[f"w{born}"] = 1.0
            driver.send(p.WorkerJoined(f"w{born}"))
            born += 1
        elif roll < 0.07 and len(live) > 1:
            driver.send(p.WorkerLeft(rng.choice(live)))
        elif roll < 0.08:
            [snapshot] = [c for c in driver.send(p.SnapshotRequested()) if isinstance(c, p.Snapshot)]
            assert set(snapshot.pending) == set(driver.samples) - set(driver.settled)
        elif roll < 0.10 and driver.samples and days:
            # A day ends: everything is settled, then the next one begins.
            driver.finish(rng)
        elif roll < 0.4:
            driver.send(p.BatchRead(rng.choice([16, 16, 16, 7])))
        elif roll < 0.7 and driver.idle:
            driver.send(p.WorkRequested(rng.choice(sorted(driver.idle))))
        elif driver.computing:
            worker = rng.choice(sorted(driver.computing))
            if rng.random() < speeds[worker]:
                driver.send(p.GradientPushed(worker, driver.computing[worker].gradient))
    driver.finish(rng)
    return driver


@settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))
@given(paces, st.lists(paces, max_size=4), st.integers(1, 12), st.integers(0, 2**32), st.integers(10, 220))
def test_random_schedules(pace, others, workers, seed, events):
    driver = random_run(pace, others, workers, seed, events)
    p.replay(driver.lines)


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**32))
def test_one_update_is_one_global_batch_in_sync_whoever_leaves(gradients, workers, seed):
    """All updates but those that drain a day hold exactly `gradients` parts, computed on one version."""
    driver = random_run(p.sync(gradients), [], workers, seed, 200)
    for command, _ in driver.applies:
        assert all(part.token == command.version - 1 for part in command.parts)
        assert len(command.parts) <= gradients
    short = sum(len(command.parts) < gradients for command, _ in driver.applies)
    assert short <= driver.drained
    assert driver.state.account.dropped == 0


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**32))
def test_gba_tokens(gradients, workers, seed):
    """Tokens never fall in hand-out order and each appears at most M times (gba.md, section 5, vector 3)."""
    # (without day ends: there the data order and the versions are made level again)
    driver = random_run(p.gba(gradients, 3), [], workers, seed, 200, days=False)
    tokens = [grant.token for grant in driver.grants]
    assert tokens == sorted(tokens)
    assert all(tokens.count(token) <= gradients for token in set(tokens))


@settings(max_examples=300, deadline=None)
@given(paces, st.integers(1, 8), st.integers(0, 2**32))
def test_an_illegal_event_raises_and_changes_nothing(pace, workers, seed):
    driver = random_run(pace, [], workers, seed, 60)
    driver.send(p.BatchRead(4))
    driver.send(p.WorkerJoined("lonely"))
    before = repr(driver.state)
    bad = [
        p.WorkerJoined("lonely"),
        p.WorkerLeft("nobody"),
        p.WorkRequested("nobody"),
        p.GradientPushed("lonely", 10**9),
        p.BatchRead(0),
    ]
    for event in bad:
        with pytest.raises(PaceError, match="not allowed"):
            p.step(driver.state, event)
        assert repr(driver.state) == before
