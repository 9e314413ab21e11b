"""The vectors of our note on GBA (section 5), the replay of traces, and the drawn life cycles."""

import random
import statistics

import pytest
from driver import Driver

from paceline import pace as p
from paceline.errors import PaceError


def events_in_time(pace, workers, batches, slow=None, factor=1.0):
    """A small event heap: worker i takes 1 + i/1e6 (times factor if slow); returns the driver."""
    import heapq

    driver = Driver(p.begin(pace))
    for i in range(workers):
        driver.send(p.WorkerJoined(f"w{i}"))
    took = {f"w{i}": (1 + i / 1e6) * (factor if slow is not None and i in slow else 1.0) for i in range(workers)}
    heap, left, clock = [], batches, 0.0

    def note(commands):
        for command in commands:
            if isinstance(command, p.Grant):
                heapq.heappush(heap, (clock + took[command.worker], command.worker, command.gradient))

    def read():
        nonlocal left
        while left and not driver.state.ready:
            left -= 1
            note(driver.send(p.BatchRead(16)))
            if not left:
                note(driver.send(p.DataEnded()))

    for i in range(workers):
        read()
        note(driver.send(p.WorkRequested(f"w{i}")))
    while heap:
        clock, worker, gradient = heapq.heappop(heap)
        note(driver.send(p.GradientPushed(worker, gradient)))
        read()
        note(driver.send(p.WorkRequested(worker)))
        read()
    assert driver.state.drained
    return driver


def staleness(driver, skip=0):
    return [c.version - 1 - part.token for c, _ in driver.applies[skip:] for part in c.parts]


def test_gba_with_one_gradient_and_no_limit_is_async():
    """Vector 2: same grants, same applies; only tokens (data order) may differ."""
    one, other = p.gba(1, None), p.asynchronous()
    a, b = events_in_time(one, 5, 100), events_in_time(other, 5, 100)
    assert [(g.worker, g.gradient) for g in a.grants] == [(g.worker, g.gradient) for g in b.grants]
    parts = [[(x.gradient, x.share, x.factor) for c, _ in d.applies for x in c.parts] for d in (a, b)]
    assert parts[0] == parts[1]


def test_every_token_appears_exactly_as_often_as_the_buffer_is_long():
    """Vector 3."""
    driver = events_in_time(p.gba(4, 3), 6, 80)
    tokens = [g.token for g in driver.grants]
    assert tokens == sorted(tokens)
    assert {tokens.count(t) for t in set(tokens)} == {4}


def test_signed_staleness_sums_to_zero():
    """Vector 4: over a finished run whose length is a multiple of M, with nothing lost."""
    assert sum(staleness(events_in_time(p.gba(4, None), 7, 400))) == 0


@pytest.mark.parametrize("r", [2, 3, 4, 5, 6])
def test_a_slow_worker_arrives_late_by_the_predicted_staleness(r):
    """Vector 5: (r - 1) * N / M under data-order tokens, r * N / M under version tokens; N = 64, M = 16."""
    for tokens, expected in (("data", (r - 1) * 4), ("version", r * 4)):
        driver = events_in_time(p.gba(16, None, tokens), 64, 64 * 60, slow={0}, factor=r)
        mine = {g.gradient for g in driver.grants if g.worker == "w0"}
        late = [c.version - 1 - part.token for c, _ in driver.applies for part in c.parts if part.gradient in mine]
        # The median: the first and the last gradients of a run are not in the steady state.
        assert abs(statistics.median(late) - expected) <= 0.6


def test_async_version_staleness_is_workers_minus_one():
    """Vector 7."""
    late = staleness(events_in_time(p.asynchronous(), 50, 5000), skip=100)
    assert abs(sum(late) / len(late) - 49) < 0.1


def test_the_worked_vector():
    """M = 4, k = 10, iota = 3: tokens 10, 9, 7, 6 give factors 1, 1, 1, 0 and divisor M."""
    state = p.begin(p.gba(4, 3))
    state.version = 10
    for i, token in enumerate((10, 9, 7, 6)):
        p.step(state, p.BatchRead(8))
        state.ready.clear()
        state.buffer[i] = p.Lease(f"w{i}", token, token)
    [apply] = [c for c in p.step(state, p.SnapshotRequested()) if isinstance(c, p.Apply)]
    assert [part.factor for part in apply.parts] == [1.0, 1.0, 1.0, 0.0]
    dense = [1.0, 2.0, 3.0, 4.0]
    assert sum(part.share * part.factor * g for part, g in zip(apply.parts, dense, strict=True)) == 1.5


def test_switching_forth_and_back_never_deadlocks():
    """The trap that a prototype fell into: tokens in the future of a barrier."""
    rng = random.Random(5)
    driver = Driver(p.begin(p.sync(2)))
    for i in range(8):
        driver.send(p.WorkerJoined(f"w{i}"))
    for n in range(300):
        driver.send(p.BatchRead(4))
        if driver.idle:
            driver.send(p.WorkRequested(rng.choice(sorted(driver.idle))))
        if n % 7 == 0:
            driver.send(p.PaceSwitched(rng.choice([p.sync(2), p.gba(4, 1), p.asynchronous(), p.sync(5)])))
        if driver.computing and rng.random() < 0.7:
            worker = rng.choice(sorted(driver.computing))
            driver.send(p.GradientPushed(worker, driver.computing[worker].gradient))
    driver.finish(rng)


def test_a_restored_machine_goes_on_with_its_account():
    driver = events_in_time(p.gba(3, 1), 4, 50, slow={1}, factor=9)
    again = p.from_json(p.to_json(driver.state), p.sync(3))
    assert again.account == driver.state.account
    assert again.version == driver.state.version
    assert again.pace == p.sync(3)


def test_replay_notices_a_difference():
    lines = events_in_time(p.gba(2, 1), 3, 12).lines
    p.replay(lines)
    wrong = [line.replace("factor 1.0", "factor 0.5", 1) if "apply 2 " in line else line for line in lines]
    with pytest.raises(PaceError, match="recorded"):
        p.replay(wrong)


@pytest.mark.parametrize(
    "values",
    [{"buffer": 0}, {"buffer": 4, "round": 3}, {"buffer": 1, "spread": -1}, {"buffer": 1, "limit": -1}],
)
def test_impossible_paces_are_refused(values):
    with pytest.raises(PaceError, match="must be"):
        p.Pace("impossible", **values)


def test_only_paces_that_need_every_worker_may_use_collectives():
    assert p.sync(4).collective
    others = [p.asynchronous(), p.bounded_staleness(1), p.backup_workers(3, 1), p.bulk_synchronous(4), p.gba(4)]
    assert not any(other.collective for other in others)
