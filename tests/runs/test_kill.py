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
    piece = checkpoint.read(newer).pieces[0]
    delta = newer.parent / "pieces" / piece.rows[-1].name
    assert "delta" in delta.name
    rows = bytearray(delta.read_bytes())
    rows[len(rows) // 2] ^= 1
    delta.write_bytes(rows)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").path == older
    end = train(job(log), log, tmp_path / "run", resume=True)
    assert end["samples_read"] == end["samples_applied"] == 6000
    train(job(log), log, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_only_damaged_checkpoints_is_an_error_that_names_them(tmp_path, log):
    train(job(log), log, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "pieces").glob("*-dense-*"):
        path.write_bytes(b"")
    with pytest.raises(StorageError, match=r"pieces/.*-dense-.*\.safetensors is not what was written"):
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
    with gzip.open(log / "day_1.tsv.gz", "rt") as file:
        lines = file.read().splitlines()[:50]
    (tmp_path / "unlabelled.tsv").write_text("\n".join(line.split("\t", 1)[1] for line in lines) + "\n")
    (tmp_path / "labelled.tsv").write_text("\n".join(lines) + "\n")
    for name in ("unlabelled", "labelled"):
        predict_run(tmp_path / "run", [str(tmp_path / f"{name}.tsv")], tmp_path / f"{name}.parquet")
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("unlabelled", "labelled"))
    assert one.column("score").equals(other.column("score"))
    assert one.column("label").null_count == 50
    assert other.column("label").null_count == 0


def test_a_kill_while_a_version_is_saved_again_keeps_it(tmp_path, log, monkeypatch):
    """At every rename of a second save of the same version, the folder is left as kill -9 would leave it."""
    from pathlib import Path as P

    train(job(log, data__days=[str(log / "day_0.tsv.gz")]), log, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    version = checkpoint.newest(folder).path.name
    whole = checkpoint.newest(folder)
    original = P.rename
    for fatal in (1, 2):
        renames = []

        def dies(self, target, fatal=fatal, renames=renames):
            renames.append(target)
            if len(renames) == fatal:
                raise SystemExit  # nothing after this happens
            return original(self, target)

        from paceline.assembly import assemble

        shard = assemble(job(log), log).shard
        piece = checkpoint.load(folder, shard).piece_of(0, 1)
        again = checkpoint.write(folder, checkpoint.take(shard, since=piece))
        monkeypatch.setattr(P, "rename", dies)
        with pytest.raises(SystemExit):
            checkpoint.commit(folder, shard.version, [again], {**whole.state}, keep=1)
        monkeypatch.undo()
        checkpoint.clean(folder)
        assert checkpoint.newest(folder).path.name == version


def test_snapshots_taken_while_rows_are_created_hold_whole_rows_only(log):
    """A worker may be pulling (and creating rows) while another one's update triggers a checkpoint."""
    import threading

    import numpy as np
    import torch

    from paceline.assembly import assemble

    made = assemble(job(log), log)
    route, stop = made.route, threading.Event()

    def pull():
        rng = np.random.default_rng(0)
        flat = torch.empty_like(made.shard.dense.flat)
        while not stop.is_set():
            route.pull(rng.integers(1, 2**62, 400), flat)

    thread = threading.Thread(target=pull)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for _ in range(60):
            with route.whole():
                ids = np.concatenate([block.ids for block in made.shard.table.blocks()] or [np.empty(0, np.int64)])
                assert len(ids) == len(made.shard.table) == len(np.unique(ids))
                assert (ids != 0).all()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_days_that_were_read_may_not_become_others(tmp_path, log):
    days = [str(log / f"day_{d}.tsv.gz") for d in range(3)]
    train(job(log, data__days=days[:2]), log, tmp_path / "run")
    with pytest.raises(RunDirError, match=r"day 0 was day_0\.tsv\.gz and is now day_1\.tsv\.gz"):
        train(job(log, data__days=days[1:]), log, tmp_path / "run", resume=True)


def test_a_mistake_before_the_first_update_does_not_block_the_directory(tmp_path, log):
    from paceline.errors import DataError

    (tmp_path / "bad.tsv").write_text("1\t2\n")
    with pytest.raises(DataError, match="nothing was trained yet"):
        train(job(log, data__days=[str(tmp_path / "bad.tsv")]), log, tmp_path / "run")
    assert train(job(log), log, tmp_path / "run")["samples_read"] == 6000


def test_no_thread_is_left_behind_by_a_run_that_stops(tmp_path, log, monkeypatch):
    import threading

    interrupt_at(monkeypatch, 1000)
    with pytest.raises(KeyboardInterrupt):
        train(job(log, workers=3), log, tmp_path / "run")
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("paceline", "worker"))]
    assert left == []


def test_the_resolved_configuration_can_be_trained_as_it_is(tmp_path, log):
    from paceline import load_config

    train(job(log), log, tmp_path / "run")
    config = load_config(tmp_path / "run" / "config.yaml")
    train(config, tmp_path / "elsewhere", tmp_path / "again")
    assert_same_state(tmp_path / "run", tmp_path / "again")
