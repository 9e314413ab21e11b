"""Jobs of interactions: the same tables, paces and checkpoints as click logs, and rankings that are what they say."""

import json

import numpy as np
import polars as pl
import pytest
from test_equality import PACES
from tools import assert_same_state, interrupt_at, state_of

from paceline import evaluate_run, predict_run, train
from paceline import pace as p
from paceline.assembly import assemble, make_source
from paceline.checkpoint import load
from paceline.errors import ConfigError, RunDirError
from paceline.jobfile import check
from paceline.simulation import simulate

TYPES = ["view", "cart", "buy"]
ROWS = 1500


def interactions_log(folder):
    """Users and items of four kinds; who buys an item of the own kind has viewed others of it."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 60, ROWS), rng.integers(0, 120, ROWS)
    own = rng.random(ROWS) < 0.9
    items = np.where(own, items - items % 4 + users % 4, items)
    kinds = rng.choice(TYPES, ROWS, p=[0.6, 0.2, 0.2])
    frame = pl.DataFrame({"user": users, "item": items, "type": kinds, "when": np.arange(ROWS)})
    frame.write_csv(folder / "log.csv")
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return interactions_log(tmp_path_factory.mktemp("log"))


def job(**changes):
    values = {
        "data": {"format": "csv", "days": "log.csv"},
        "interactions": {
            "user": "user", "item": "item", "type": "type", "types": TYPES, "time": "when", "epochs": 3,
            "holdout": {"rows": "last"}, "ranking": {"at": [5, 10], "candidates": 20},
        },
        "model": {"name": "mrmn", "dim": 8, "slots": 4},
        "optimizer": {"sparse": {"name": "adam", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.002}},
        "batch": {"global": 128, "local": 32},
        "pace": {"name": "sync"},
        "workers": 2,
        "checkpoint": {"every": 1000},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return check(values, "test")


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def samples(log):
    return len(make_source(job(), log).set_of([str(log / "log.csv")]).users)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("model", ["mrmn", "cml", "lrml"])
def test_sync_is_bitwise_the_same_with_any_number_of_workers(tmp_path, log, workers, model):
    chosen = {"name": model, "dim": 8}
    train(job(model=chosen, workers=2), log, tmp_path / "two")
    end = train(job(model=chosen, workers=workers), log, tmp_path / "other")
    assert end["samples_read"] == end["samples_applied"] == 3 * samples(log)
    assert_same_state(tmp_path / "two", tmp_path / "other")
    told = [[line.get("ranking") for line in lines_of(tmp_path / name)] for name in ("two", "other")]
    assert told[0] == told[1]


@pytest.mark.parametrize("moment", [100, 1500, 2900])
def test_stop_and_resume_is_bitwise_never_stopped(tmp_path, log, moment, monkeypatch):
    config = job(workers=3, interactions__harder=0.5)
    train(config, log, tmp_path / "whole")
    interrupt_at(monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, log, tmp_path / "cut")
    end = train(config, log, tmp_path / "cut", resume=True)
    assert end["samples_read"] == end["samples_applied"] == 3 * samples(log)
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    assert [line.get("ranking") for line in lines_of(tmp_path / "whole")] == [
        line.get("ranking") for line in lines_of(tmp_path / "cut")
    ]


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_every_pace_accounts_for_every_sample_and_learns(tmp_path, log, pace):
    end = train(job(pace=pace, workers=4, interactions__epochs=8), log, tmp_path / "run")
    assert end["samples_read"] == 8 * samples(log) == end["samples_applied"] + end["samples_dropped"]
    p.replay((tmp_path / "run" / "pace.trace").read_text().splitlines())
    ranked = end["ranking"]["types"]["buy"]["sampled"]
    assert ranked["items"] == 20
    assert ranked["hr@5"] > 0.45  # by chance 5 of 21; a quarter of the items is of the user's own kind


def test_gba_without_delay_is_sync(tmp_path, log):
    train(job(workers=1), log, tmp_path / "sync")
    train(job(workers=1, pace__name="gba"), log, tmp_path / "gba")
    assert_same_state(tmp_path / "sync", tmp_path / "gba")


def test_a_run_goes_on_at_another_pace_with_more_epochs(tmp_path, log):
    train(job(), log, tmp_path / "run")
    end = train(job(pace__name="gba", workers=3, interactions__epochs=5), log, tmp_path / "run", resume=True)
    assert end["samples_read"] == 5 * samples(log)
    told = [line["day"] for line in lines_of(tmp_path / "run") if line["event"] == "evaluation"]
    assert told == [1, 2, 3, 4, 5]
    with pytest.raises(RunDirError, match="interactions.negatives was 4 and is now 2"):
        train(job(interactions__negatives=2), log, tmp_path / "run", resume=True)


def test_every_row_is_in_the_ball(tmp_path, log):
    """Our note on MRMN, invariant 8, in a run."""
    train(job(optimizer__sparse__lr=0.3), log, tmp_path / "run")
    rows, _, _ = state_of(tmp_path / "run")
    lengths = np.linalg.norm(rows["weights"].astype(np.float64), axis=1)
    assert (lengths <= 1 + 1e-6).all()
    assert (lengths > 0.999).any()


def test_simulated_workers_and_stacked_gradients(tmp_path, log):
    from paceline.clusterspec import ClusterSpec

    cluster = ClusterSpec.model_validate({"workers": 8, "compute": {"fixed_ms": 10}})
    ends = [
        simulate(job(pace__name="gba"), cluster, log, tmp_path / f"stacked{n}", threads=1, stacked=n) for n in (1, 8)
    ]
    for end in ends:
        assert end["samples_read"] == 3 * samples(log) == end["samples_applied"] + end["samples_dropped"]
    a, b = (state_of(tmp_path / f"stacked{n}")[0]["weights"] for n in (1, 8))
    assert np.mean(np.abs(a - b) > 1e-3) < 0.02


@pytest.mark.parametrize("model", [{"name": "mrmn", "dim": 8, "gated": True}, {"name": "lrml", "dim": 8}], ids=str)
def test_rankings_are_those_of_a_plain_count(tmp_path, log, model):
    """Each held-out item's rank, one distance at a time, with plain lists of what the user had feedback on."""
    import torch

    holdout = {"rows": "random", "types": TYPES}
    config = job(model=model, interactions__holdout=holdout)
    end = train(config, log, tmp_path / "run")
    fresh = assemble(config, log, 1)
    load(tmp_path / "run" / "checkpoints", fresh.shard, dense_optimizer=False)
    chosen = fresh.replicas[0].model
    fresh.route.read_dense(fresh.replicas[0].flat)
    found = fresh.interactions.set_of(fresh.days[0])
    every = pl.read_csv(log / "log.csv")
    observed: dict[tuple[int, int], set[int]] = {}
    for u, i, t in zip(found.users, found.items, found.types, strict=True):
        observed.setdefault((int(u), int(t)), set()).add(int(i))
    assert len(found.item_ids) == every["item"].n_unique()

    def vectors(ids):
        return torch.from_numpy(fresh.shard.table.pull(fresh.shard.table.find(ids), ids))

    users, items = vectors(found.user_ids), vectors(found.item_ids)
    ranks: dict[int, list[float]] = {}
    for u, v, t in zip(found.tests.users, found.tests.items, found.tests.types, strict=True):
        with torch.no_grad():
            d = [
                float(chosen.distances(users[u].view(1, 1, -1), items[i].view(1, 1, -1), torch.tensor([t])))
                for i in range(len(items))
            ]
        seen = observed.get((int(u), int(t)), set())
        ranks.setdefault(int(t), []).append(1 + sum(d[i] < d[v] - 1e-6 for i in range(len(items)) if i not in seen))
    for t, name in enumerate(TYPES):
        told, mine = end["ranking"]["types"][name], np.array(ranks[t])
        assert told["tests"] == len(mine)
        assert told["all"]["items"] == len(items)
        for k in (5, 10):
            assert told["all"][f"hr@{k}"] == pytest.approx((mine <= k).mean(), abs=1.5 / len(mine))
            gain = np.where(mine <= k, 1 / np.log2(mine + 1), 0).mean()
            assert told["all"][f"ndcg@{k}"] == pytest.approx(gain, abs=1.5 / len(mine))
        assert told["sampled"]["hr@10"] >= told["all"]["hr@10"]  # fewer items stand before it


def test_a_finished_run_is_evaluated_on_files(tmp_path, log):
    rows = pl.read_csv(log / "log.csv").sort("when")
    last = rows.filter(pl.col("type") == "buy").group_by("user", maintain_order=True).last().select(rows.columns)
    last.write_csv(tmp_path / "test.csv")
    rows.join(last, on=["user", "item", "type"], how="anti").write_csv(tmp_path / "log.csv")
    config = job(interactions__holdout=None, interactions__test=str(tmp_path / "test.csv"))
    end = train(config, tmp_path, tmp_path / "run")
    told = evaluate_run(tmp_path / "run", [str(tmp_path / "test.csv")])
    assert told["types/buy/all/ndcg@10"] == end["ranking"]["types"]["buy"]["all"]["ndcg@10"]
    assert told["margins/view"] == 0.5
    with pytest.raises(RunDirError, match="ranks items and predicts no clicks"):
        predict_run(tmp_path / "run", [str(tmp_path / "test.csv")], tmp_path / "p.parquet")


def test_feedback_of_one_type(tmp_path, log):
    """Without a column of types; what the run keeps of its configuration is read again."""
    rows = pl.read_csv(log / "log.csv").filter(pl.col("type") == "view")
    rows.select("user", "item").write_csv(tmp_path / "log.csv")
    values = {"user": "user", "item": "item", "holdout": {"rows": "random"}, "ranking": {"candidates": 20}}
    end = train(job(interactions=values), tmp_path, tmp_path / "run")
    assert list(end["ranking"]["types"]) == ["interaction"]
    rows.select("user", "item").head(30).write_csv(tmp_path / "test.csv")
    told = evaluate_run(tmp_path / "run", [str(tmp_path / "test.csv")])
    assert told["types/interaction/tests"] == 30


def test_what_a_person_sees(tmp_path, log, capsys):
    import sys

    from paceline.cli import main
    from paceline.report.compare import compare_runs

    (tmp_path / "job.yaml").write_text(job(data={"format": "csv", "days": str(log / "log.csv")}).to_yaml())
    for words in (["train", str(tmp_path / "job.yaml"), "--run-dir"], ["inspect"]):
        sys.argv = ["paceline", *words, str(tmp_path / "run")]
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().out
        assert ended.value.code == 0
        assert "Ranked among all 120 items and among 20 drawn" in told
        assert "HR@5" in told
    pl.read_csv(log / "log.csv").head(40).write_csv(tmp_path / "test.csv")
    sys.argv = ["paceline", "evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "test.csv")]
    with pytest.raises(SystemExit):
        main()
    assert "types/buy/all/hr@10" in capsys.readouterr().out
    with pytest.raises(RunDirError, match="ranks items, so there is no AUC to compare"):
        compare_runs([tmp_path / "run", log])


def test_nothing_held_out_nothing_ranked(tmp_path, log):
    end = train(job(interactions__holdout=None), log, tmp_path / "run")
    assert end["ranking"] is None
    assert [line["event"] for line in lines_of(tmp_path / "run")] == ["end"]


def test_rankings_come_as_often_as_asked_and_after_the_last_epoch(tmp_path, log):
    train(job(interactions__ranking={"every": 2, "candidates": 5}), log, tmp_path / "run")
    told = lines_of(tmp_path / "run")
    assert [line["day"] for line in told if line["event"] == "evaluation"] == [2, 3]
    assert list(told[-1]["ranking"]["types"]["buy"]["all"]) == ["items", "hr@10", "ndcg@10"]


def test_too_many_candidates_are_told(tmp_path, log):
    with pytest.raises(ConfigError, match=r"ranking\.candidates: 500 are not there for a user .* of 120 items"):
        train(job(interactions__ranking={"candidates": 500}), log, tmp_path / "run")


def test_an_optimizer_that_cannot_keep_rows_in_a_ball_is_told(tmp_path, log):
    with pytest.raises(ConfigError, match=r"optimizer\.sparse\.name: the model keeps its rows in a ball"):
        train(job(optimizer__sparse__name="ftrl"), log, tmp_path / "run")


def test_learned_margins_are_in_every_evaluation(tmp_path, log):
    train(job(model__learn_margins=True), log, tmp_path / "run")
    margins = [line["ranking"]["margins"] for line in lines_of(tmp_path / "run")]
    assert all(0.1 <= value <= 2 for told in margins for value in told.values())
    assert margins[0] != margins[1]
