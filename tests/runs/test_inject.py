"""`inject` without a cluster: worker threads that are slow or die, asked for on the command line."""

import json
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import yaml
from tools import assert_same_state, job, state_of, synthetic, train

from paceline import cli
from paceline.runtimes import turns

ROWS = 6000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=ROWS)


@pytest.fixture(scope="module")
def undisturbed(log, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(job(log, workers=3), log, run)
    return run


def go(monkeypatch, log, run, *overrides):
    """`paceline train` of the job with three workers; its last metrics line, and its trace."""
    file = log / "job.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(job(log, workers=3).to_yaml())))
    monkeypatch.setattr(sys, "argv", ["paceline", "train", str(file), "--run-dir", str(run), *overrides])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 0
    end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    return end, (run / "pace.trace").read_text().splitlines()


class Clock:
    """Each thread's own time: a second passes whenever it is asked. Who would sleep is written down instead."""

    def __init__(self):
        self.asked, self.slept = threading.local(), []

    def monotonic(self):
        self.asked.times = getattr(self.asked, "times", 0.0) + 1.0
        return self.asked.times

    def sleep(self, seconds):
        self.slept.append((threading.current_thread().name, seconds))


@pytest.mark.parametrize("pace", ["sync", "async"])
def test_a_slow_worker_sleeps_a_factor_less_one_after_each_gradient_and_nobody_else_does(
    tmp_path, log, undisturbed, monkeypatch, pace
):
    clock = Clock()
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    run = tmp_path / "run"
    _, trace = go(monkeypatch, log, run, f"pace={pace}", "inject=[{slow: worker-1, factor: 5}]")
    pushed = sum(line.startswith("> pushed worker-1 ") for line in trace)
    assert pushed > 0
    assert clock.slept == [("worker-1", 4.0)] * pushed
    if pace == "sync":
        assert_same_state(run, undisturbed)  # it changes how long it takes, and nothing else


@pytest.mark.parametrize("pace", ["sync", "gba", "async"])
def test_a_killed_worker_stays_away_and_the_others_do_its_work(tmp_path, log, undisturbed, monkeypatch, pace):
    run = tmp_path / "run"
    end, trace = go(monkeypatch, log, run, f"pace={pace}", "inject=[{kill: worker-1, at: 2500}]")
    read, granted, pushed = 0, [], set()
    for line in trace:
        told = line.split()
        if line.startswith("> read "):
            read += int(told[2])
        elif line.startswith("< grant worker-1 "):
            granted.append((told[3], read))
        elif line.startswith("> pushed worker-1 "):
            pushed.add(told[3])
    assert granted, "it worked before"
    assert not [gradient for gradient, at in granted if at >= 2500 and gradient in pushed]
    assert granted[-1][1] < 4000, "the day after, it is not there at all"
    lost = [gradient for gradient, _ in granted if gradient not in pushed]
    assert len(lost) == state_of(run)[2]["machine"]["account"]["lost_leases"] <= 1
    again = [line.split()[2] for line in trace if line.startswith("< grant ") and line.split()[3] in lost]
    assert len(again) == 2 * len(lost), "the batch that it held is another's"
    expected = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[-1])
    if pace == "sync":
        assert_same_state(run, undisturbed)
        assert end["auc"] == expected["auc"]
    assert end["auc"] > 0.58  # the pace has its part in it; what it is by chance is 0.5


def test_who_was_killed_is_away_after_a_resume_too(tmp_path, log, undisturbed, monkeypatch):
    run, faults = tmp_path / "run", "inject=[{kill: worker-0, at: 700}, {slow: worker-1, factor: 1}]"
    two = f"data.days={json.dumps([str(log / f'day_{day}.tsv.gz') for day in range(2)])}"
    three = f"data.days={json.dumps([str(log / f'day_{day}.tsv.gz') for day in range(3)])}"
    monkeypatch.setattr("test_inject.ROWS", 4000)
    go(monkeypatch, log, run, two, faults)
    monkeypatch.setattr("test_inject.ROWS", 6000)
    _, trace = go(monkeypatch, log, run, three, faults, "--resume")
    resumed = len(trace) - 1 - [line.startswith("= ") for line in trace][::-1].index(True)
    assert {line.split()[2] for line in trace[resumed:] if line.startswith("< grant ")} == {"worker-1", "worker-2"}
    assert_same_state(run, undisturbed)
