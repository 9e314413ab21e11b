"""The whole thing: `paceline train` on Ray nodes, whose processes die, whose pace is changed by a person."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import trustme
from raynodes import job_file, ray_nodes, start  # noqa: F401  (a fixture)
from reading import read_rows
from tools import synthetic

ROWS = 60_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=ROWS)


def test_a_run_survives_the_death_of_any_process_and_a_change_of_pace(tmp_path, log, ray_nodes, monkeypatch):  # noqa: F811
    """Sync (in steps of collectives), then GBA because a person asked for it; a helper, a node with a shard and the
    coordinator are killed on the way. The Ray cluster is found by its own variable (address: auto)."""
    monkeypatch.setenv("RAY_ADDRESS", ray_nodes)
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
    with start(job_file(tmp_path, log, "auto", inject=faults), run) as process:
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


def test_with_tls_and_a_token_it_trains_and_who_has_both_reads(tmp_path, log, ray_nodes, monkeypatch):  # noqa: F811
    """The documented reader gets rows of the running job, a stranger none."""
    ca, host = trustme.CA(), ray_nodes.partition(":")[0]
    made = ca.issue_cert(host, "127.0.0.1")
    tls = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    ca.cert_pem.write_to_path(tls["ca"])
    made.cert_chain_pems[0].write_to_path(tls["cert"])
    made.private_key_pem.write_to_path(tls["key"])
    monkeypatch.setenv("PACELINE_TOKEN", "a secret")
    security = {"token": "env:PACELINE_TOKEN", "tls": tls}
    cluster = {"address": ray_nodes, "nodes": 2, "security": security}
    days = [str(log / f"day_{day % 3}.tsv.gz") for day in range(1000)]  # interrupted once rows were read
    data = {"format": "criteo", "days": days}
    run, said, answers = tmp_path / "run", [], []
    with gzip.open(log / "day_0.tsv.gz", "rt") as file:
        values = sorted({line.split("\t")[14] for line in file} - {""})[:4]

    def read(process):
        files = tls["ca"], tls["cert"], tls["key"]
        try:
            answers.extend(read_rows(run, values, token, files) for token in ("a secret", "another"))
        finally:
            process.send_signal(signal.SIGINT)

    reading = None
    with start(job_file(tmp_path, log, cluster["address"], data=data, cluster=cluster), run) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("day 1:") and reading is None:
                reading = threading.Thread(target=read, args=(process,))
                reading.start()
    assert reading is not None, "".join(said)
    reading.join()
    assert process.returncode == 130, "".join(said)
    (code, shards, rows, errors), stranger = answers
    assert code == 0, errors
    processes = json.loads((run / "processes.json").read_text())
    assert list(shards) == [processes[f"node-{i}"]["address"] for i in range(2)]
    assert all(told["version"] > 0 and told["ids"] > 0 for told in shards.values())
    assert rows.keys() == set(values)
    assert all(weights[0] != 0.0 for weights in rows.values()), "a linear weight begins with 0"
    assert (stranger[0] != 0, *stranger[1:3]) == (True, {}, {})
    assert "FlightUnauthenticatedError" in stranger[3]
    assert "a secret" not in (run / "config.yaml").read_text()


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
    read = kept["machine"]["account"]["read"]
    past, due = f"{{kill: node-0, at: {read}}}", f"{{kill: worker-2, at: {read + 1}}}"
    again = ["--resume", "pace=sync", "cluster.nodes=2", "cluster.workers=1", f"inject=[{past}, {due}]"]
    with start(job, run, *again) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{read:,} settled" in output
    assert re.findall(r"\S+ is killed, as asked", output) == ["helper-0 is killed, as asked"]
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    assert end["pace"] == "sync"
