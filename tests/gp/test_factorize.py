"""`paceline factorize` from end to end."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from rating_data import RATINGS, rating_file
from safetensors.torch import load_file

from paceline.errors import ConfigError, RunDirError
from paceline.gp.config import FactorizeConfig
from paceline.gp.keeping import CHECKPOINT
from paceline.gp.story import factorize
from paceline.jobfile import check
from paceline.rundir import read_metrics


def job(folder, **changes):
    if not (folder / "ratings.csv").exists():
        rating_file(folder)
    values = {"ratings": RATINGS, "model": {"name": "gplvmf", "inducing": 6}, "training": {"epochs": 4}, **changes}
    return check(values, "job.yaml", kind=FactorizeConfig)


def paceline(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "paceline", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_command(tmp_path):
    """A run directory with everything that is promised; `inspect` shows it again."""
    rating_file(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"ratings": RATINGS, "split": {"validation": 0.1}}))
    done = paceline(tmp_path, "factorize", "job.yaml", "training.epochs=3", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    for word in (
        "RMSE",
        "NDCG@10",
        "Importance (ARD weights)",
        "mood",
        "temperature",
        "epoch 3: objective",
        "validation",
    ):
        assert word in done.stdout
    run = tmp_path / "run"
    assert (run / "importances.png").read_bytes()[:4] == b"\x89PNG"
    assert set(json.loads((run / "importances.json").read_text())) == {"item", "mood", "temperature"}
    told = yaml.safe_load((run / "config.yaml").read_text())
    assert (told["training"]["epochs"], told["training"]["method"], told["model"]["inducing"]) == (3, "adam", 24)
    lines = read_metrics(run)
    assert [line["event"] for line in lines] == ["epoch"] * 3 + ["test"]
    table = pq.read_table(run / "predictions.parquet")
    errors = [(a - b) ** 2 for a, b in zip(table["rating"].to_pylist(), table["prediction"].to_pylist(), strict=True)]
    assert (sum(errors) / len(errors)) ** 0.5 == pytest.approx(lines[-1]["rmse"])
    assert (len(errors), lines[-1]["rows_train"]) == (19, 69)
    seen = paceline(tmp_path, "inspect", "run")
    assert seen.returncode == 0
    assert "NDCG@10" in seen.stdout
    again = paceline(tmp_path, "factorize", "job.yaml", "training.epochs=3", "--run-dir", "run")
    assert (again.returncode, "there is a run already" in again.stderr) == (2, True)
    wrong = paceline(tmp_path, "factorize", "job.yaml", "model.dims=3")
    assert (wrong.returncode, "did you mean 'dim'" in wrong.stderr) == (2, True)
    assert "Traceback" not in wrong.stderr + again.stderr


@pytest.mark.parametrize(
    ("model", "method"), [("gplvmf", "adam"), ("gplvmf", "lbfgs"), ("gpfm", "sgd"), ("gpfm", "adam"), ("fm", "lbfgs")]
)
def test_resumed_is_never_stopped(tmp_path, model, method):
    """Two epochs, then two more: bit by bit the four of a run that was not interrupted."""
    changes = {"model": {"name": model}, "split": {"validation": 0.2}}
    training = {"method": method, "iterations": 3}
    whole = factorize(job(tmp_path, **changes, training={**training, "epochs": 4}), tmp_path, tmp_path / "whole")
    factorize(job(tmp_path, **changes, training={**training, "epochs": 2}), tmp_path, tmp_path / "parts")
    four = job(tmp_path, **changes, training={**training, "epochs": 4})
    parts = factorize(four, tmp_path, tmp_path / "parts", resume=True)
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    for a, b in ((tmp_path / "whole" / CHECKPOINT, tmp_path / "parts" / CHECKPOINT),):
        first, second = load_file(a), load_file(b)
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)
    assert [line["event"] for line in read_metrics(tmp_path / "parts")] == ["epoch"] * 4 + ["test"]


def test_the_best_epoch_is_tested(tmp_path):
    config = job(tmp_path, model={"name": "gpfm"}, split={"validation": 0.3}, training={"epochs": 12, "lr": 0.2})
    end = factorize(config, tmp_path, tmp_path / "run")
    seen = [line["validation_rmse"] for line in read_metrics(tmp_path / "run")[:-1]]
    assert end["best_epoch"] == 1 + seen.index(min(seen))


def test_a_run_goes_on_only_with_its_own_job(tmp_path):
    factorize(job(tmp_path, training={"epochs": 1}), tmp_path, tmp_path / "run")
    with pytest.raises(RunDirError, match=r"seed was 0 and is now 1; a run cannot go on with another"):
        factorize(job(tmp_path, seed=1), tmp_path, tmp_path / "run", resume=True)
    with pytest.raises(RunDirError, match="there is no run to go on with"):
        factorize(job(tmp_path), tmp_path, tmp_path / "none", resume=True)
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"short")
    with pytest.raises(RunDirError, match="damaged"):
        factorize(job(tmp_path), tmp_path, tmp_path / "run", resume=True)


def test_epochs_below_those_that_are_done(tmp_path):
    factorize(job(tmp_path, training={"epochs": 2}), tmp_path, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"training.epochs is 1, and the run has done 2"):
        factorize(job(tmp_path, training={"epochs": 1}), tmp_path, tmp_path / "run", resume=True)


def test_means_need_no_training(tmp_path):
    end = factorize(job(tmp_path, model="mean", training={}), tmp_path, tmp_path / "run")
    assert end["epochs"] == 0
    assert end["inside_50"] is None


def test_a_test_file(tmp_path):
    """Test rows of their own, with a user, an item and a mood that training has not."""
    rating_file(tmp_path)
    (tmp_path / "test.csv").write_text("user,item,rating,mood,temperature\nnew,i99,3,odd,\nu0,i1,2,sad,10\n")
    for model in ("gplvmf", "gpfm", "fm", "mean"):
        changes = {"ratings": {**RATINGS, "test": "test.csv"}, "model": model, "training": {"epochs": 2}}
        end = factorize(job(tmp_path, **changes), tmp_path, tmp_path / model)
        assert (end["rows_test"], end["rows_train"]) == (2, 96)
        assert end["rmse"] == end["rmse"]


def test_one_rating_each(tmp_path):
    """Users with one row: nothing to learn a process from, and nothing that fails."""
    lines = ["user,item,rating", *(f"u{n},i{n % 3},{1 + n % 5}" for n in range(20))]
    (tmp_path / "ratings.csv").write_text("\n".join(lines) + "\n")
    plain = {"files": "ratings.csv", "user": "user", "item": "item", "rating": "rating"}
    for model in ("gplvmf", "gpfm", "fm"):
        config = check({"ratings": plain, "model": model, "training": {"epochs": 2}}, "job", kind=FactorizeConfig)
        assert factorize(config, tmp_path, tmp_path / model)["ndcg@10"] is None
