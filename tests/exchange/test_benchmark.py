"""The benchmark of bytes works: nodes in processes, all ways on the same batches, tables out of their results."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "evidence" / "results" / "exchange"
sys.path.insert(0, str(ROOT / "benchmarks"))

from exchange_codes import measure_codes  # noqa: E402
from exchange_jobs import Job, batch_of  # noqa: E402
from exchange_report import write_report  # noqa: E402

import exchange  # noqa: E402


@pytest.fixture(scope="module")
def measured():
    """Of two steps by two nodes."""
    job, nodes = Job("fm", 12, 8, 2), exchange.Nodes(None, 2)
    told = {"job": asdict(job), "nodes": 2, "steps": 2}
    try:
        yield [{**told, "way": way, **nodes.measure(job, way, 2)} for way in exchange.WAYS]
    finally:
        nodes.close()


def test_ways_send_what_they_are_predicted_to_send(measured):
    pushed, rows, summed, _ = (result["first"]["sent"] for result in measured)
    assert pushed["rows"] + pushed["row_gradients"] == pytest.approx(rows["rows"])
    assert pushed["ids"] == pytest.approx(rows["ids"], rel=0.05), "all ids are new in the first step"
    assert summed["sums"] > 0 < summed["positions"]
    for result in measured:
        span = result["first"]
        assert sum(span["sent"].values()) == pytest.approx(sum(span["predicted"].values()), rel=0.05)
        assert span["wire"] == 0, "nobody counts it here"


def test_what_was_measured_is_not_measured_again(measured):
    todo = [job for job, _, _ in exchange.missing(measured, ["curve", "models", "data", "long"], 4, False)]
    assert len(todo) > 60
    job = Job(**measured[0]["job"])
    assert job not in todo
    again = [{**measured[0], "job": asdict(todo[0]), "nodes": 4, "steps": 60, "way": way} for way in exchange.WAYS]
    assert todo[0] not in [job for job, _, _ in exchange.missing(again, ["curve", "models", "data"], 4, False)]
    chosen = exchange.same_as(job, 2, measured)
    assert chosen is None or chosen["modes"] == dict(job.plan(2, "auto").modes)


def test_the_report_is_made_of_what_is_there(measured, tmp_path):
    write_report({"results": measured, "codes": measure_codes(1)}, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "in 0 of 1 cases" in table
    assert "| fm | 12 ids, 2 bags | 1.1 | 2 |" in table


def test_committed_results_are_complete_and_auto_is_never_the_dearer_way(tmp_path):
    kept = json.loads((COMMITTED / "exchange.json").read_text())
    for nodes in (2, 3, 4):
        assert not list(exchange.missing(kept["results"], ["curve", "models", "data", "long"], nodes, False))
    write_report(kept, tmp_path)
    table = (COMMITTED / "table.md").read_text()
    assert (tmp_path / "table.md").read_text() == table
    assert "`auto` sent more than the cheapest in 0 of 60 cases." in table
    assert all(result["late" if "late" in result else "early"]["wire"] > 0 for result in kept["results"])
    assert (COMMITTED / "plot.png").exists()


def test_batches_are_the_same_everywhere():
    job = Job("lr", 12, 8, 2)
    assert (batch_of(job, 3).flat_ids() == batch_of(job, 3).flat_ids()).all()
    assert batch_of(job, 3).flat_ids().shape == (512 * 12,)
