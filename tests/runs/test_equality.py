"""The promise behind everything: the same numbers, whoever computes them."""

import threading

import numpy as np
import pytest
from serial import train_serially
from tools import assert_same_state, interrupt_at, job, state_of, synthetic, train

from paceline import pace as p
from paceline.data.synth import SynthSpec
from paceline.data.synth_write import write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def serial(log):
    """Parameters of the plain serial loop, computed in a thread of its own (thread settings stay there)."""
    found = []
    files = sorted(log.glob("day_*"))
    thread = threading.Thread(target=lambda: found.append(train_serially(job(log), files)))
    thread.start()
    thread.join()
    return found[0]


def run(folder, log, name, **changes):
    config = job(log, **changes)
    return train(config, log, folder / name)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_sync_is_bitwise_the_serial_loop_with_any_number_of_workers(tmp_path, log, serial, workers):
    end = run(tmp_path, log, "run", workers=workers)
    rows, dense, _ = state_of(tmp_path / "run")
    expected_rows, expected_dense = serial
    assert end["samples_applied"] == 6000
    assert rows["id"].tolist() == sorted(expected_rows)
    both = np.stack([expected_rows[key] for key in rows["id"].tolist()])
    np.testing.assert_array_equal(np.concatenate([rows["weights"], rows["slots"]], axis=1), both)
    names = [
        "linear.bias",
        "deep.first.weight",
        "deep.first.bias",
        "deep.rest.0.weight",
        "deep.rest.0.bias",
        "deep.out.weight",
    ]
    np.testing.assert_array_equal(np.concatenate([dense[n].reshape(-1) for n in names]), expected_dense)


def test_gba_without_delay_is_sync(tmp_path, log):
    """One worker: every gradient of a global batch is computed on the same version, in order (gba.md, vector 1)."""
    run(tmp_path, log, "sync", workers=1)
    run(tmp_path, log, "gba", workers=1, pace__name="gba")
    assert_same_state(tmp_path / "sync", tmp_path / "gba")


def test_gba_without_delay_and_another_local_batch_is_sync_to_rounding(tmp_path, log):
    run(tmp_path, log, "sync", workers=1)
    run(tmp_path, log, "gba", workers=1, pace__name="gba", batch__local=16)
    (a, dense_a, _), (b, dense_b, _) = state_of(tmp_path / "sync"), state_of(tmp_path / "gba")
    np.testing.assert_array_equal(a["id"], b["id"])
    # An Adagrad step from an accumulator near zero turns a rounding error of a tiny gradient into a visible one.
    assert np.mean(np.abs(a["weights"] - b["weights"]) > 1e-5) < 1e-3
    np.testing.assert_allclose(dense_a["deep.first.weight"], dense_b["deep.first.weight"], atol=2e-4)


def test_per_id_mean_differs_when_local_batches_differ(tmp_path, log):
    """The negative test of gba.md, vector 1: per_id_mean agrees between modes only with equal local batches."""
    reduce = {"optimizer__sparse__reduce": "per_id_mean", "workers": 1}
    run(tmp_path, log, "sync", **reduce)
    run(tmp_path, log, "same", pace__name="gba", **reduce)
    run(tmp_path, log, "other", pace__name="gba", batch__local=8, **reduce)
    assert_same_state(tmp_path / "sync", tmp_path / "same")
    a, b = state_of(tmp_path / "sync")[0]["weights"], state_of(tmp_path / "other")[0]["weights"]
    assert np.mean(np.abs(a - b) > 1e-3) > 0.05


@pytest.mark.parametrize("moment", [100, 2000, 2500, 4100, 5900])
@pytest.mark.parametrize("workers", [1, 3])
def test_stop_and_resume_is_bitwise_never_stopped(tmp_path, log, moment, workers, monkeypatch):
    run(tmp_path, log, "whole", workers=workers)
    config = job(log, workers=workers)
    interrupt_at(monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, log, tmp_path / "cut")
    if moment > 100:
        assert 0 < state_of(tmp_path / "cut")[2]["machine"]["account"]["applied"] < 6000
    end = train(config, log, tmp_path / "cut", resume=True)
    assert end["samples_read"] == end["samples_applied"] == 6000
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert len(lines[0]) == len(lines[1]) == 3
    p.replay((tmp_path / "cut" / "pace.trace").read_text().splitlines())


def test_standardised_numbers_survive_a_resume_bitwise(tmp_path, monkeypatch):
    folder = tmp_path / "log"
    write_log(SynthSpec(rows=4000, days=2, seed=2, layout="parquet", vocabulary=5000), folder)
    features = {
        "label": "click",
        "numeric": [{"column": "i1", "transform": "standardise"}, {"column": "i2", "transform": "standardise"}, "i3"],
        "categorical": ["c1", "c6", "c9"],
        "multi": [{"column": "m1"}, {"column": "m2", "pool": "sum"}],
        "group": "user",
    }
    config = job(folder, features=features, data={"format": "parquet", "days": str(folder / "day_*.parquet")})
    train(config, folder, tmp_path / "whole")
    interrupt_at(monkeypatch, 1000)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, tmp_path / "cut")
    end = train(config, folder, tmp_path / "cut", resume=True)
    assert end["gauc"] is not None
    assert_same_state(tmp_path / "whole", tmp_path / "cut")


def test_a_run_goes_on_under_another_pace_and_number_of_workers(tmp_path, log, monkeypatch):
    interrupt_at(monkeypatch, 2500)
    with pytest.raises(KeyboardInterrupt):
        train(job(log, workers=2), log, tmp_path / "run")
    config = job(log, workers=5, pace__name="gba", pace__max_staleness=4, batch__local=16)
    end = train(config, log, tmp_path / "run", resume=True)
    assert end["pace"] == "gba"
    assert end["samples_read"] == 6000 == end["samples_applied"] + end["samples_dropped"]


PACES = [
    {"name": "sync"},
    {"name": "async"},
    {"name": "bounded_staleness", "bound": 1},
    {"name": "backup_workers", "backup": 1},
    {"name": "bulk_synchronous"},
    {"name": "gba", "max_staleness": 2},
    {"name": "gba", "max_staleness": 0, "tokens": "version"},
]


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_every_pace_accounts_for_every_sample_and_learns(tmp_path, log, pace):
    end = run(tmp_path, log, "run", pace=pace, workers=4)
    assert end["samples_read"] == 6000 == end["samples_applied"] + end["samples_dropped"]
    assert end["auc"] > 0.55
    p.replay((tmp_path / "run" / "pace.trace").read_text().splitlines())


def test_switches_take_effect_at_a_day_and_in_its_middle(tmp_path, log):
    switch = [{"at": 1000, "pace": "async"}, {"at": "day_1", "pace": {"name": "gba"}}, {"at": 4500, "pace": "sync"}]
    end = run(tmp_path, log, "run", switch=switch, workers=3)
    trace = (tmp_path / "run" / "pace.trace").read_text().splitlines()
    switched = [line for line in trace if line.startswith("> switched")]
    assert [line.split('"name": "')[1].split('"')[0] for line in switched] == ["async", "gba", "sync"]
    read, at = 0, {}
    for line in trace:
        if line.startswith("> read"):
            read += int(line.split()[2])
        if line.startswith("> switched"):
            at[line.split('"name": "')[1].split('"')[0]] = read
    assert at["async"] in range(1000, 1033)
    assert at["gba"] == 2000
    assert at["sync"] in range(4500, 4533)
    assert end["samples_read"] == 6000 == end["samples_applied"] + end["samples_dropped"]


def test_rows_in_bfloat16_are_the_same_bits_too_and_learn_as_well(tmp_path, log, monkeypatch):
    """Rounding by chance depends on the numbers and the version, not on threads, shards, stops and the clock."""
    half = {"optimizer__sparse__rows": "bf16"}
    end = run(tmp_path, log, "one", workers=1, **half)
    run(tmp_path, log, "three", workers=3, **half)
    interrupt_at(monkeypatch, 2500)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, log, "cut", workers=3, **half)
    train(job(log, workers=3, **half), log, tmp_path / "cut", resume=True)
    for other in ("three", "cut"):
        assert_same_state(tmp_path / "one", tmp_path / other)
    whole = run(tmp_path, log, "fp32", workers=1)
    weights, exact = (state_of(tmp_path / name)[0]["weights"] for name in ("one", "fp32"))
    assert not (weights.view(np.uint32) & 0xFFFF).any()
    assert (exact.view(np.uint32) & 0xFFFF).any()
    assert end["auc"] == pytest.approx(whole["auc"], abs=0.01)
