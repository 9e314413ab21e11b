"""Killed, broken and damaged runs: the last good checkpoint is always usable."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tools import assert_same_state, interrupt_at, job, state_of, synthetic, train

from paceline import checkpoint
from paceline.errors import LossError, RunDirError, StorageError, TrainingError
from paceline.evaluate import evaluate_run, predict_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def test_kill_9_at_random_moments(tmp_path):
    """The script that the evidence comes from, with a few rounds; it exits with 1 if anything is lost."""
    folder = synthetic(tmp_path / "log", rows=60_000)
    values = yaml.safe_load(job(folder, checkpoint__every=2000, workers=2).to_yaml())
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    script = [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py"), str(tmp_path / "job.yaml"), "--times", "4"]
    out = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "4 of 4 rounds are right" in out.stdout


def test_a_worker_that_raises_ends_the_run_with_its_error_and_a_checkpoint(tmp_path, log, monkeypatch):
    from paceline.runtimes.compute import Replica

    original, calls = Replica.gradient, []

    def breaks(self, batch, pulled):
        calls.append(1)
        if len(calls) == 100:
            raise ValueError("a broken model")
        return original(self, batch, pulled)

    monkeypatch.setattr(Replica, "gradient", breaks)
    with pytest.raises(TrainingError, match="a broken model") as caught:
        train(job(log, workers=3), log, tmp_path / "run")
    assert "--resume" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "a broken model" in (tmp_path / "run" / "error.log").read_text()
    monkeypatch.undo()
    train(job(log, workers=3), log, tmp_path / "run", resume=True)
    train(job(log), log, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_from_before(tmp_path, log, monkeypatch):
    from paceline.runtimes.compute import Replica

    original, calls = Replica.gradient, []

    def explodes(self, batch, pulled):
        calls.append(1)
        loss, gradient = original(self, batch, pulled)
        return (float("nan"), gradient) if len(calls) == 150 else (loss, gradient)

    monkeypatch.setattr(Replica, "gradient", explodes)
    with pytest.raises(LossError, match=r"the loss became nan.*optimizer\.sparse\.lr"):
        train(job(log, checkpoint__every=10**6), log, tmp_path / "run")
    _, _, state = state_of(tmp_path / "run")
    assert (state["day"], state["evaluated"]) == (2, False)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, log, monkeypatch):
    interrupt_at(monkeypatch, 4500)
    with pytest.raises(KeyboardInterrupt):
        train(job(log), log, tmp_path / "run")
    older, newer = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    rows = bytearray((newer / "rows.arrow").read_bytes())
    rows[len(rows) // 2] ^= 1
    (newer / "rows.arrow").write_bytes(rows)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").path == older
    end = train(job(log), log, tmp_path / "run", resume=True)
    assert end["samples_read"] == end["samples_applied"] == 6000
    train(job(log), log, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_only_damaged_checkpoints_is_an_error_that_names_them(tmp_path, log):
    train(job(log), log, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"):
        (path / "dense.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"dense\.safetensors is not what was written"):
        evaluate_run(tmp_path / "run", [str(log / "day_0.tsv.gz")])


def test_what_a_killed_writer_leaves_is_cleared(tmp_path, log):
    train(job(log), log, tmp_path / "run")
    leftover = tmp_path / "run" / "checkpoints" / ".writing-1-2"
    leftover.mkdir()
    (leftover / "rows.arrow").write_bytes(b"half")
    train(job(log), log, tmp_path / "run", resume=True)
    assert not leftover.exists()


def test_a_finished_run_goes_on_when_days_are_added(tmp_path, log):
    days = [str(log / f"day_{d}.tsv.gz") for d in range(3)]
    train(job(log, data__days=days[:2]), log, tmp_path / "run")
    end = train(job(log, data__days=days), log, tmp_path / "run", resume=True)
    assert end["samples_read"] == 6000
    train(job(log), log, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["day"]) for line in lines] == [("evaluation", 1), ("evaluation", 2), ("end", 2)]


def test_another_model_or_seed_is_refused_on_resume(tmp_path, log):
    train(job(log, data__days=[str(log / "day_0.tsv.gz")]), log, tmp_path / "run")
    for change, key in (
        ({"model__dim": 8}, "model"),
        ({"seed": 3}, "seed"),
        ({"optimizer__sparse__name": "sgd"}, "sparse"),
    ):
        with pytest.raises(RunDirError, match=key):
            train(job(log, **change), log, tmp_path / "run", resume=True)


def test_predictions_are_those_of_the_evaluation(tmp_path, log):
    import numpy as np
    import pyarrow.parquet as pq

    from paceline.metrics import Counters

    train(job(log), log, tmp_path / "run")
    files = [str(log / "day_1.tsv.gz"), str(log / "day_2.tsv.gz")]
    told = evaluate_run(tmp_path / "run", files)
    assert predict_run(tmp_path / "run", files, tmp_path / "scores.parquet") == 4000 == told["rows"]
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column("row").to_pylist() == [*range(2000), *range(2000)]
    assert set(table.column("file").to_pylist()[:2000]) == {files[0]}
    p = table.column("score").to_numpy().astype(np.float64)
    counters = Counters()
    counters.add(np.log(p / (1 - p)).astype(np.float32), table.column("label").to_numpy())
    assert counters.result()["auc"] == pytest.approx(told["auc"], abs=1e-4)
    assert counters.result()["logloss"] == pytest.approx(told["logloss"], abs=1e-5)


def test_rows_without_a_label_can_be_scored(tmp_path, log):
    import gzip

    import pyarrow.parquet as pq

    train(job(log, data__days=[str(log / "day_0.tsv.gz")]), log, tmp_path / "run")
    lines = gzip.open(log / "day_1.tsv.gz", "rt").read().splitlines()[:50]
    (tmp_path / "unlabelled.tsv").write_text("\n".join(line.split("\t", 1)[1] for line in lines) + "\n")
    (tmp_path / "labelled.tsv").write_text("\n".join(lines) + "\n")
    for name in ("unlabelled", "labelled"):
        predict_run(tmp_path / "run", [str(tmp_path / f"{name}.tsv")], tmp_path / f"{name}.parquet")
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("unlabelled", "labelled"))
    assert one.column("score").equals(other.column("score"))
    assert one.column("label").null_count == 50
    assert other.column("label").null_count == 0
