"""`paceline workers` on Ray nodes: helpers join and leave jobs that go on meanwhile."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from raynodes import job_file, ray_nodes, start  # noqa: F401  (a fixture)
from tools import assert_same_state, job, synthetic, train

DAY = 10_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=3 * DAY)


def days(log, count):
    return [str(log / f"day_{i % 3}.tsv.gz") for i in range(count)]


def ask(run, number):
    command = [sys.executable, "-m", "paceline", "workers", str(run), str(number)]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def train_and_ask(file, run, numbers):
    """Start a job that would go on for long, ask for each number of helpers in turn, then interrupt it: ([(exit code,
    what was said) of each question], what the run said)."""
    answers, said, asking = [], [], None

    def ask_all(process):
        try:
            answers.extend(ask(run, number) for number in numbers)
        finally:
            process.send_signal(signal.SIGINT)

    with start(file, run) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("day 1:"):
                asking = threading.Thread(target=ask_all, args=(process,))
                asking.start()
    assert asking is not None, "".join(said)
    asking.join()
    assert process.returncode == 130, "".join(said)
    return answers, "".join(said)


def go_on(file, run, log):
    """Resume on no more days than were begun: (how many, the last metrics line)."""
    kept = json.loads((sorted((run / "checkpoints").glob("[0-9]*"))[-1] / "state.json").read_text())
    count = kept["day"] + 1
    with start(file, run, "--resume", "data.days=" + json.dumps(days(log, count))) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return count, json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def assert_nothing_twice(run):
    """No batch was granted to a second worker; returns the workers that had some."""
    granted = [line.split()[2:4] for line in (run / "pace.trace").read_text().splitlines() if "< grant" in line]
    assert len({gradient for _, gradient in granted}) == len(granted)
    return {worker.split("+")[0] for worker, _ in granted}


def test_a_gba_run_gains_helpers_as_far_as_there_is_room_and_loses_them(tmp_path, log, ray_nodes):  # noqa: F811
    """Six CPUs: the coordinator, two nodes and a helper have four of them."""
    run = tmp_path / "run"
    data = {"format": "criteo", "days": days(log, 1000)}
    file = job_file(tmp_path, log, ray_nodes, pace="gba", data=data)
    answers, said = train_and_ask(file, run, [2, 5, 0, -1])
    codes, texts = zip(*answers, strict=True)
    assert codes == (0, 2, 0, 2), texts
    assert texts[0].startswith("2 helpers, 4 workers in all from ")
    assert texts[1].startswith("3 helpers, 5 workers in all from ")
    assert "2 fewer than asked for: Ray found no room" in texts[1]
    assert texts[2].startswith("0 helpers, 2 workers in all from ")
    assert (
        texts[3]
        == "paceline: workers: -1 is no number of helpers; give one from 0 to 65,536, as cluster.workers has it\n"
    )
    for told in ("helpers are now 2, workers in all 4", "helpers are now 3", "helpers are now 0, workers in all 2"):
        assert told in said
    assert "going on from the last snapshot" not in said
    assert {"worker-0", "worker-1", "worker-2"} <= assert_nothing_twice(run)
    assert [*json.loads((run / "processes.json").read_text())] == ["coordinator", "node-0", "node-1"]
    assert (
        ask(run, 1)[1]
        == f"paceline: {run}: nothing is running there; give cluster.workers=... to the next `paceline train`\n"
    )
    count, end = go_on(file, run, log)
    assert end["samples_read"] == count * DAY == end["samples_applied"] + end["samples_dropped"]
    assert end["workers"] == 3, "what the configuration says counts when a run goes on"


def test_a_sync_run_by_collectives_gains_a_helper_and_trains_bitwise_as_without(tmp_path, log, ray_nodes):  # noqa: F811
    """Its parameters are those of the local runtime: an update is the sum over the global batch in the order of its
    parts, whoever computes them."""
    run = tmp_path / "run"
    cluster = {"address": ray_nodes, "nodes": 2, "exchange": "rows"}
    data = {"format": "criteo", "days": days(log, 1000)}
    file = job_file(tmp_path, log, ray_nodes, data=data, cluster=cluster)
    answers, said = train_and_ask(file, run, [1])
    assert answers[0][0] == 0, answers
    assert answers[0][1].startswith("1 helpers, 3 workers in all from ")
    assert "going on from the last snapshot" not in said
    assert_nothing_twice(run)
    assert "> joined worker-2" in (run / "pace.trace").read_text()
    count, end = go_on(file, run, log)
    assert end["samples_read"] == count * DAY == end["samples_applied"]
    train(job(log, data={"format": "criteo", "days": days(log, count)}), log, tmp_path / "alone")
    assert_same_state(run, tmp_path / "alone")
