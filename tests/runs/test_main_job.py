"""The main job as a user meets it: the command line, what it writes, URLs, precision, threads."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tools import assert_same_state, job, synthetic, train

PACELINE = [sys.executable, "-m", "paceline"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def paceline(*words, cwd):
    return subprocess.run([*PACELINE, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("layout", ["criteo", "parquet"])
def test_every_command_from_nothing_to_scores(tmp_path, layout):
    made = paceline("synth", "--rows", "6_000", "--days", 3, "--out", "log", "--layout", layout, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    best = json.loads((tmp_path / "log" / "truth.json").read_text())["total"]["best_auc"]
    assert f"{best:.5f}" in made.stdout
    trained = paceline("train", "log/job.yaml", "pace=gba", "model.dim=4", "model.hidden=[16]", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "best AUC" in trained.stdout
    assert "6,000 samples read = " in trained.stdout
    run = tmp_path / "runs" / "log-0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = (
        "event day auc logloss gauc ne calibration samples_read samples_applied samples_dropped rows_skipped updates"
    )
    for line in lines:
        assert set(f"{wanted} samples_per_s pace seconds".split()) <= set(line)
    assert [line["event"] for line in lines] == ["evaluation", "evaluation", "end"]
    assert (lines[-1]["gauc"] is not None) == (layout == "parquet")
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["pace"] == {"name": "gba", "max_staleness": 3, "tokens": "data"}
    day = next((tmp_path / "log").glob("day_2.*"))
    told = paceline("evaluate", run, "--data", day, "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["rows"] == 2000
    assert paceline("predict", run, "--data", day, "--out", "s.parquet", cwd=tmp_path).stdout.startswith("2,000 scores")
    shown = paceline("inspect", run, cwd=tmp_path).stdout
    assert "newest checkpoint" in shown
    looked = paceline("inspect", day, cwd=tmp_path)
    suggestion = yaml.safe_load(looked.stdout.split("then train):")[1])
    assert suggestion["data"]["format"] == layout
    (tmp_path / "suggested.yaml").write_text(yaml.safe_dump(suggestion))
    again = paceline("train", "suggested.yaml", "evaluate=none", "model=lr", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_curves_can_be_read_by_tensorboard(tmp_path, log):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(job(log), log, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "curves"))
    events.Reload()
    points = events.Scalars("evaluation/auc")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][:-1]
    assert [(p.step, pytest.approx(p.value)) for p in points] == [(x["samples_read"], x["auc"]) for x in lines]


def test_days_may_be_urls_and_lists_of_files(tmp_path, log):
    train(job(log), log, tmp_path / "plain")
    urls = [f"file://{log}/day_0.tsv.gz", [f"file://{log}/day_1.*"], str(log / "day_2.tsv.gz")]
    train(job(log, data__days=urls), log, tmp_path / "urls")
    assert_same_state(tmp_path / "plain", tmp_path / "urls")


def test_a_day_of_several_files_is_one_day(tmp_path, log):
    files = [str(log / f"day_{day}.tsv.gz") for day in range(3)]
    end = train(job(log, data__days=[files[:2], files[2]]), log, tmp_path)
    assert end["samples_read"] == 6000
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["event"], x["samples_read"]) for x in lines] == [("evaluation", 4000), ("end", 6000)]


def test_bf16_learns_as_fp32_does(tmp_path):
    folder = synthetic(tmp_path / "log", rows=40_000, days=2)
    ends = {p: train(job(folder, precision=p, workers=1), folder, tmp_path / p) for p in ("fp32", "bf16")}
    assert abs(ends["fp32"]["auc"] - ends["bf16"]["auc"]) < 0.01
    assert ends["bf16"]["auc"] > 0.6


@pytest.mark.parametrize("model", ["lr", "fm", "wide_deep", "dcn_v2", "dlrm"])
@pytest.mark.parametrize("sparse", ["sgd", "rowwise_adagrad", "adam", "ftrl"])
def test_every_model_and_row_optimizer_runs(tmp_path, log, model, sparse):
    options = {} if model == "lr" else {"dim": 4} if model == "fm" else {"dim": 4, "hidden": [8]}
    end = train(job(log, model={"name": model, **options}, optimizer__sparse={"name": sparse}), log, tmp_path / "run")
    assert end["samples_applied"] == 6000
    assert end["auc"] is not None


def test_an_interrupted_command_keeps_everything_and_says_how_to_go_on(tmp_path):
    folder = synthetic(tmp_path / "log", rows=60_000)
    (tmp_path / "job.yaml").write_text(job(folder, workers=2).to_yaml())
    words = [*PACELINE, "train", "job.yaml", "--run-dir", "run"]
    seen = False
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("day 1") and not seen:
                seen = True
                process.send_signal(signal.SIGTERM)
        told = process.stderr.read()
    assert seen
    assert process.returncode == 130, told
    assert "go on with --resume" in told
    assert "Traceback" not in told
    again = paceline("train", "job.yaml", "--run-dir", "run", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "60,000 samples read = 60,000 applied" in again.stdout


def test_the_run_is_found_where_it_was_asked_for(tmp_path, log):
    (tmp_path / "job.yaml").write_text(job(log).to_yaml())
    assert paceline("train", "job.yaml", "--run-dir", "a/b/c", cwd=tmp_path).returncode == 0
    assert {p.name for p in Path(tmp_path / "a/b/c").iterdir()} >= {"config.yaml", "metrics.jsonl", "pace.trace"}


@pytest.mark.parametrize("words", [["train"], ["train", "--no-such-option"], ["nonsense"], ["synth", "--rows", "x"]])
def test_a_wrong_command_line_is_a_usage_error(tmp_path, words):
    told = paceline(*words, cwd=tmp_path)
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert "Usage" in told.stderr or "Error" in told.stderr
