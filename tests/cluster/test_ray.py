"""The whole thing: `paceline train` on Ray nodes, whose processes die, whose pace is changed by a person."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from raynodes import job_file, ray_nodes, start  # noqa: F401  (a fixture)
from tools import synthetic

ROWS = 60_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=ROWS)


def test_a_run_survives_the_death_of_any_process_and_a_change_of_pace(tmp_path, log, ray_nodes):  # noqa: F811
    """Sync (in steps of collectives), then GBA because a person asked for it; a helper, a node with a shard and the
    coordinator are killed on the way."""
    run = tmp_path / "run"
    faults = [
        {"kill": "worker-2", "at": 3000},
        {"kill": "shard-1", "at": 18_000},
        {"kill": "coordinator", "at": 42_000},
    ]
    said, asked = [], {}

    def ask():
        found = subprocess.run(
            [sys.executable, "-m", "paceline", "pace", str(run), "gba", "max_staleness=4"],
            capture_output=True,
            text=True,
        )
        asked["code"], asked["text"] = found.returncode, found.stdout + found.stderr

    asking = threading.Thread(target=ask)
    with start(job_file(tmp_path, log, ray_nodes, inject=faults), run) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("day 1:") and asking.ident is None:
                asking.start()
        if asking.ident is not None:
            asking.join()
    assert process.returncode == 0, "".join(said)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    end = lines[-1]
    assert asked["code"] == 0, asked["text"]
    assert re.fullmatch(r"gba from [\d,]+ samples on; [\d,]+\.\d ms to its first lease\n", asked["text"]), asked["text"]
    assert [line["pace"] for line in lines] == ["sync", "gba", "gba"]
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    assert end["recoveries"] == 2, "the helper's death costs no state"
    assert end["recovery_s"] > 0
    text = "".join(said)
    for told in (
        "helper-0 is killed",
        "node-1 is killed",
        "the coordinator is killed",
        "going on from the last snapshot",
    ):
        assert told in text
    # Two shards wrote it; one process reads it.
    found = subprocess.run(
        [sys.executable, "-m", "paceline", "evaluate", str(run), "--data", str(log / "day_2.tsv.gz"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout)["rows"] == ROWS // 3


def test_killed_by_the_system_it_goes_on_and_an_interrupted_run_resumes_on_other_nodes(tmp_path, log):
    """On a Ray of its own: a process is killed -9 from outside; Ctrl-C keeps everything; one node more goes on."""
    run = tmp_path / "run"
    job = job_file(tmp_path, log, "local", pace="async", cluster={"nodes": 1, "workers": 1})
    said, killed = [], False
    with start(job, run) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("day 1:") and not killed:
                killed = True
                processes = json.loads((run / "processes.json").read_text())
                os.kill(processes["node-0"]["pid"], signal.SIGKILL)
            if line.startswith("resumed from"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(said)
    assert "go on with --resume" in "".join(said)
    kept = json.loads((sorted((run / "checkpoints").glob("[0-9]*"))[-1] / "state.json").read_text())
    again = ["--resume", "pace=sync", "cluster.nodes=2", "cluster.workers=0"]
    with start(job, run, *again) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{kept['machine']['account']['read']:,} settled" in output
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    assert end["pace"] == "sync"
