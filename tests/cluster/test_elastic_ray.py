"""`paceline workers` on Ray nodes: helpers join and leave jobs that go on meanwhile."""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from raynodes import job_file, ray_nodes, start  # noqa: F401  (a fixture)
from tools import job as small_job
from tools import state_of, synthetic, train

DAY = 20_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=3 * DAY)


def ask(run, number):
    found = subprocess.run(
        [sys.executable, "-m", "paceline", "workers", str(run), str(number)], capture_output=True, text=True
    )
    return found.returncode, found.stdout, found.stderr


def days(log, count):
    return [str(log / f"day_{i % 3}.tsv.gz") for i in range(count)]


def train_and_ask(file, run, numbers):
    """Start a job that would go on for long, ask for each number of helpers in turn, interrupt it: ([(exit code, what
    was said)] of the questions, the run's exit code, its words)."""
    answers, said, asking = [], [], None

    def ask_all():
        answers.extend(ask(run, number) for number in numbers)
        process.send_signal(signal.SIGINT)

    with start(file, run) as process:
        for line in process.stdout:
            said.append(line)
            if asking is None and "training" in line or line.startswith("day"):
                asking = asking or threading.Thread(target=ask_all)
                if asking.ident is None:
                    asking.start()
    if asking is not None:
        asking.join()
    return answers, process.returncode, "".join(said)


def go_on(file, run, log):
    """Resume, on no more days than were begun: (the last metrics line, how many days)."""
    kept = json.loads((sorted((run / "checkpoints").glob("[0-9]*"))[-1] / "state.json").read_text())
    count = kept["day"] + 1
    with start(file, run, "--resume", "data.days=" + json.dumps(days(log, count))) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]), count


def test_a_gba_run_gains_a_helper_and_loses_it(tmp_path, log, ray_nodes):  # noqa: F811
    run = tmp_path / "run"
    cluster = {"address": ray_nodes, "nodes": 2, "workers": 1}
    data = {"format": "criteo", "days": days(log, 300)}
    file = job_file(tmp_path, log, ray_nodes, pace="gba", data=data, cluster=cluster, evaluate="none")
    answers, code, said = train_and_ask(file, run, [2, 0, -1, 100_000])
    print(answers, code, said)
    assert 0
