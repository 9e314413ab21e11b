"""The virtual cluster: the same numbers as threads, times that can be reckoned by hand, workers that die and return."""

import json

import numpy as np
import pytest
from tools import assert_same_state, interrupt_at, job, state_of, synthetic

from paceline import pace
from paceline.assembly import assemble
from paceline.clusterspec import ClusterSpec
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import ConfigError, Interrupted, TrainingError
from paceline.rundir import read_metrics
from paceline.simulation import CLUSTER, measure, simulate
from paceline.telemetry import Telemetry
from paceline.training import train

IDEAL = {
    "compute": {"fixed_ms": 100, "per_sample_us": 0},
    "network": {"latency_ms": 0, "bandwidth_gbps": 1e9},
    "servers": {"ms_per_mb": 0},
    "allreduce": {"latency_ms": 0, "bandwidth_gbps": 1e9},
}


def cluster(workers, **changes):
    values = {"workers": workers, **IDEAL}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return ClusterSpec.model_validate(values)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def run(config, spec, log, folder, **more):
    return simulate(config, spec, log, folder, **more)


def rows_of_log(log):
    """Distinct ids of every gradient, counted from the log itself."""
    from paceline.params.table import unique

    found = 0
    for day in range(3):
        made = assemble(job(log), log, replicas=1)
        plan = Plan(day, 32, moments=no_moments(len(made.schema.dense)))
        found += sum(len(unique(b.flat_ids())[0]) for b in day_batches(made.log, made.days[day], plan))
    return found


def histograms(folder):
    return [json.loads(line) for line in (folder / "histograms.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_sync_is_bitwise_the_local_runtime(log, tmp_path, workers):
    config = job(log, workers=3)
    train(config, log, tmp_path / "local")
    run(config, cluster(workers), log, tmp_path / "virtual")
    assert_same_state(tmp_path / "local", tmp_path / "virtual")
    local, virtual = (read_metrics(tmp_path / name) for name in ("local", "virtual"))
    assert [line["auc"] for line in local] == [line["auc"] for line in virtual]
    assert [line["logloss"] for line in local] == [line["logloss"] for line in virtual]


@pytest.mark.parametrize("name", ["async", "gba", "bounded_staleness", "backup_workers", "bulk_synchronous"])
def test_one_worker_is_bitwise_the_local_runtime_at_any_pace(log, tmp_path, name):
    config = job(log, workers=1, pace__name=name)
    train(config, log, tmp_path / "local")
    run(config, cluster(1, compute={"jitter_sigma": 0.5}), log, tmp_path / "virtual")
    assert_same_state(tmp_path / "local", tmp_path / "virtual")


def test_the_number_of_real_threads_changes_no_bit(log, tmp_path):
    config = job(log, pace__name="async", pace__weight={"law": "power"}, normalise="local_batch")
    spec = cluster(40, compute={"speed_sigma": 0.3, "jitter_sigma": 0.2}, failures={"mtbf_s": 5, "return_s": 1})
    lines = [run(config, spec, log, tmp_path / str(n), threads=n) for n in (1, 2, 3)]
    assert_same_state(tmp_path / "1", tmp_path / "2")
    assert_same_state(tmp_path / "1", tmp_path / "3")
    keys = [k for k in lines[0] if k not in ("seconds", "samples_per_s")]
    assert [lines[0][k] for k in keys] == [lines[1][k] for k in keys] == [lines[2][k] for k in keys]


def test_a_trace_replays_and_staleness_is_workers_minus_one(log, tmp_path):
    config = job(log, pace__name="async")
    end = run(config, cluster(20, compute={"jitter_sigma": 0.3}), log, tmp_path / "run")
    state = pace.replay((tmp_path / "run" / "pace.trace").read_text().splitlines())
    assert state.account.applied == end["samples_applied"] == 6000
    told = histograms(tmp_path / "run")
    assert len(told) == 3
    # The first gradients of a day find fresh parameters and its last ones meet nobody else: below 19, not above it.
    counts = np.sum([np.pad(t["staleness"], (0, 8 - len(t["staleness"]))) for t in told], axis=0)
    assert counts.sum() == 3 * 63
    assert 14 < end["staleness_mean"] <= 19
    assert 19 < end["staleness_max"] < 40, "jitter makes some wait longer than others"
    rows = sum(sum(t["row_staleness"]) for t in told)
    assert rows == rows_of_log(log), "every row of every gradient"
    norms = told[0]["gradient_norm"]
    assert sum(norms["counts"]) + norms["zeros"] == 63
    assert told[0]["gradient_norm"] == told[0]["update_norm"], "async applies gradients as they are"


def test_times_of_an_even_cluster_are_those_of_the_back_of_an_envelope(log, tmp_path):
    """16 gradients of 0.1 s an update... on 4 workers: 2000 rows a day are 62.5 gradients of 32, 16 rounds of 4."""
    end = run(job(log), cluster(4), log, tmp_path / "sync")
    assert end["virtual_seconds"] == pytest.approx(3 * 16 * 0.1, rel=1e-9)
    assert end["samples_per_virtual_s"] == pytest.approx(6000 / 4.8, rel=1e-3)
    # In the last round of a day three workers have work and one waits: 3 of 3 * 16 * 4 slots stay empty.
    assert end["idle_share"] == pytest.approx(3 * 1 / (3 * 16 * 4), rel=1e-3)


def test_a_straggler_holds_up_sync_and_not_gba(log, tmp_path):
    spec = cluster(4, stragglers={"share": 0.25, "factor": 5})
    ends = {name: run(job(log, pace__name=name), spec, log, tmp_path / name) for name in ("sync", "gba")}
    # The straggler has no part in a day's last round of three gradients.
    assert ends["sync"]["virtual_seconds"] == pytest.approx(3 * (15 * 0.5 + 0.1), rel=1e-9)
    # Three fast workers and a fifth of one: 3.2 gradients in 0.1 s, but for the day's last ones.
    assert 63 / 32 <= ends["gba"]["virtual_seconds"] / 3 <= 63 / 32 + 0.5
    assert ends["sync"]["idle_share"] > 0.55 > 0.2 > ends["gba"]["idle_share"]
    per_worker = histograms(tmp_path / "sync")[0]
    shares = [per_worker["idle_s"][w] / per_worker["present_s"][w] for w in per_worker["present_s"]]
    assert sorted(round(share, 1) for share in shares) == [0.0, 0.8, 0.8, 0.8]


def test_the_network_the_servers_and_the_ring_take_their_time(log, tmp_path):
    """One worker, one gradient a day: every term of the time is reckoned by hand."""
    day = {"data__days": [str(log / "day_0.tsv.gz")], "evaluate": "none", "batch__global": 2000, "batch__local": 2000}
    base = run(job(log, **day, pace__name="async"), cluster(1), log, tmp_path / "base")["virtual_seconds"]
    assert base == pytest.approx(0.1, abs=1e-6)
    from paceline.exchange.direct import DirectRoute

    sizes = []
    original = DirectRoute.push

    def push(self, number, gradient):
        sizes.append((gradient.bytes, 4 * gradient.dense.numel()))
        original(self, number, gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectRoute, "push", push)
        slow = {"network": {"latency_ms": 7, "bandwidth_gbps": 0.01}, "servers": {"count": 2, "ms_per_mb": 30}}
        end = run(job(log, **day, pace__name="async"), cluster(1, **slow), log, tmp_path / "slow")
        [(size, _)] = sizes
        wires = 2 * size * 8 / 1e7 + 3 * 0.007 + 2 * size / 1e6 * 0.030 / 2
        assert end["virtual_seconds"] == pytest.approx(0.1 + wires, rel=1e-4)
        sizes.clear()
        ring = cluster(4, allreduce={"latency_ms": 5, "bandwidth_gbps": 0.01})
        many = {**day, "batch__local": 500}
        end = run(job(log, **many), ring, log, tmp_path / "ring")
        largest, dense = max(s for s, _ in sizes), sizes[0][1]
        # rows there and back by all-to-all, then the ring
        reduced = 0.005 + 1.5 * dense * 8 / 1e7
        once = 0.1 + 2 * (0.005 + (largest - dense) * 8 / 1e7) + reduced
        assert end["virtual_seconds"] == pytest.approx(once, rel=1e-4)
        two = {**many, "data__days": [[str(log / "day_0.tsv.gz"), str(log / "day_1.tsv.gz")]]}
        sizes.clear()
        again = run(job(log, **two), ring, log, tmp_path / "ring2")
        rows = max(s for s, _ in sizes[4:])
        extra = again["virtual_seconds"] - end["virtual_seconds"]
        assert extra == pytest.approx(0.1 + 3 * 0.005 + (1.5 * dense + 2 * (rows - dense)) * 8 / 1e7, rel=0.02)


def test_bursts_slow_down_by_the_share_of_time_that_they_take(log, tmp_path):
    """Slow half of the time by 3: of two seconds one gives a second's work and one a third."""
    spec = cluster(4, stragglers={"kind": "bursts", "factor": 3, "slow_s": 0.5, "share": 0.5})
    end = run(job(log, pace__name="async", batch__local=4), spec, log, tmp_path / "run")
    assert end["virtual_seconds"] == pytest.approx(6000 / 4 / 4 * 0.1 / (2 / 3), rel=0.12)


def test_recorded_times_are_replayed(log, tmp_path):
    (tmp_path / "times.csv").write_text("worker,seconds\na,0.5\na,1.5\nb,1.0\n")
    spec = ClusterSpec.model_validate({**IDEAL, "workers": 2, "stragglers": {"trace": "times.csv"}})
    config = job(log, batch__local=64)
    end = run(config, spec, log, tmp_path / "run", cluster_base=tmp_path)
    # a: 0.5, 1.5, 0.5, ...; b: 1.0 always. Rounds of two gradients: 1.0 and 1.5 in turn, 16 rounds a day.
    assert end["virtual_seconds"] == pytest.approx(3 * 16 * 1.25, rel=1e-6)


@pytest.mark.parametrize("name", ["sync", "gba", "async"])
def test_workers_die_and_return_and_nothing_is_lost(log, tmp_path, name):
    spec = cluster(6, failures={"mtbf_s": 0.7, "return_s": 0.4})
    end = run(job(log, pace__name=name), spec, log, tmp_path / "run")
    assert end["samples_read"] == 6000 == end["samples_applied"] + end["samples_dropped"]
    state = pace.replay((tmp_path / "run" / "pace.trace").read_text().splitlines())
    assert state.account.lost_leases > 5
    even = run(job(log, pace__name=name), cluster(6), log, tmp_path / "even")
    assert end["virtual_seconds"] > 1.1 * even["virtual_seconds"]
    if name == "sync":
        assert_same_state(tmp_path / "run", tmp_path / "even")


def test_a_cluster_whose_workers_all_died_says_so(log, tmp_path):
    spec = cluster(3, failures={"mtbf_s": 0.2, "return_s": None})
    with pytest.raises(TrainingError, match=r"all 3 have failed .*failures.return_s"):
        run(job(log), spec, log, tmp_path / "run")


@pytest.mark.parametrize("name", ["sync", "gba"])
def test_a_simulation_goes_on_from_its_checkpoint(log, tmp_path, monkeypatch, name):
    spec = cluster(4, compute={"speed_sigma": 0.3, "jitter_sigma": 0.3})
    config = job(log, pace__name=name, normalise="local_batch")
    whole = run(config, spec, log, tmp_path / "whole")
    interrupt_at(monkeypatch, 3000)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(config, spec, log, tmp_path / "parts")
    end = run(config, spec, log, tmp_path / "parts", resume=True)
    assert end["samples_read"] == whole["samples_read"]
    assert len(histograms(tmp_path / "parts")) == 3
    assert end["virtual_seconds"] == pytest.approx(whole["virtual_seconds"], rel=0.05)
    if name == "sync":
        assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_switch_in_both_directions(log, tmp_path):
    switch = [{"at": "day_1", "pace": "gba"}, {"at": 4500, "pace": "sync"}]
    spec = cluster(8, compute={"speed_sigma": 0.5})
    end = run(job(log, switch=switch), spec, log, tmp_path / "run")
    assert end["samples_applied"] + end["samples_dropped"] == 6000
    assert [t["pace"] for t in histograms(tmp_path / "run")] == ["sync", "gba", "sync"]


def test_thousands_of_workers(log, tmp_path):
    """More workers than batches: the rest wait."""
    end = run(job(log, batch__local=4, pace__name="gba"), cluster(3000), log, tmp_path / "run")
    assert end["samples_read"] == 6000
    assert end["idle_share"] > 0.8


def test_measuring_changes_nothing_and_is_kept(log, tmp_path):
    spec = ClusterSpec.model_validate({**IDEAL, "workers": 2, "compute": {"measure": True}})
    config = job(log)
    fixed, per_sample = measure(config, log)
    assert fixed > 0
    assert per_sample >= 0
    run(config, spec, log, tmp_path / "run")
    text = (tmp_path / "run" / CLUSTER).read_text()
    assert "measure: false" in text
    run(config, cluster(2), log, tmp_path / "even")
    assert_same_state(tmp_path / "run", tmp_path / "even")


def test_local_runs_have_the_same_keys(log, tmp_path):
    train(job(log, pace__name="gba"), log, tmp_path / "local")
    run(job(log, pace__name="gba"), cluster(2), log, tmp_path / "virtual")
    local, virtual = (read_metrics(tmp_path / n)[-1] for n in ("local", "virtual"))
    assert local.keys() == virtual.keys()
    assert local["virtual_seconds"] is None
    assert local["idle_share"] is not None
    assert local["dropped_share"] == pytest.approx(local["samples_dropped"] / 6000, abs=1e-6)
    for line in (local, virtual):
        assert {"staleness_mean", "staleness_max", "idle_share", "dropped_share", "virtual_seconds"} <= line.keys()


def test_telemetry_survives_json():
    counted = Telemetry()
    for s in (0, 1, 5, -2, 9):
        counted.settled(s)
    for norm in (0.0, 1e-3, 1e-3, 7.0, float("inf"), 1e-30):
        counted.gradients.add(norm)
    counted.idle["worker-0"] = 1.5
    counted.present["worker-0"] = 3.0
    again = Telemetry.from_json(json.loads(json.dumps(counted.to_json())))
    assert again.to_json() == counted.to_json()
    assert again.staleness_mean == pytest.approx(13 / 5)
    assert again.idle_share == 0.5
    again.merge(counted)
    assert again.gradients.zeros == 2
    assert sum(again.staleness) == 10


def test_a_cluster_file_is_checked(tmp_path):
    from paceline.clusterfile import load_cluster, load_times

    path = tmp_path / "cluster.yaml"
    path.write_text("workers: 4\ncompute: {fixed_ms: 20, per_sample_ms: 1}\n")
    with pytest.raises(ConfigError, match=r"cluster.yaml, line 2: compute.per_sample_ms: unknown key"):
        load_cluster(path)
    path.write_text("workers: 4\nstragglers: {kind: bursts, share: 0.1}\n")
    with pytest.raises(ConfigError, match="slow_s"):
        load_cluster(path)
    path.write_text("workers: 4\nstragglers: {trace: t.csv}\n")
    spec = load_cluster(path, ["workers=9"])
    assert spec.workers == 9
    with pytest.raises(ConfigError, match="t.csv: there is no such file"):
        load_times(spec, tmp_path)
    (tmp_path / "t.csv").write_text("worker,seconds\na,-1\n")
    with pytest.raises(Exception, match="line 2: '-1' is no time"):
        load_times(spec, tmp_path)


def test_steps_of_ftrl_cannot_be_weighed(log, tmp_path):
    weight = {"law": "power", "scales": "step"}
    for part, other in (("sparse", "dense"), ("dense", "sparse")):
        options = {f"optimizer__{part}": {"name": "ftrl_swap"}, f"optimizer__{other}": {"name": "sgd", "lr": 0.01}}
        with pytest.raises(ConfigError, match=f"pace.weight.scales: step does not go with optimizer.{part}"):
            run(job(log, pace={"name": "async", "weight": weight}, **options), cluster(2), log, tmp_path / part)


def test_stacked_gradients_are_the_same_but_for_rounding(log, tmp_path):
    """Also with batch normalisation, whose statistics are each worker's own."""
    config = job(log, pace__name="async", normalise="local_batch")
    spec = cluster(40, compute={"jitter_sigma": 0.3})
    one = run(config, spec, log, tmp_path / "one", threads=1)
    many = run(config, spec, log, tmp_path / "many", stacked=16)
    assert many["virtual_seconds"] == one["virtual_seconds"]
    assert many["auc"] == pytest.approx(one["auc"], abs=2e-3)
    assert many["staleness_mean"] == one["staleness_mean"]
    first, second = (state_of(tmp_path / name) for name in ("one", "many"))
    np.testing.assert_array_equal(first[0]["count"], second[0]["count"])
    close = np.isclose(first[0]["weights"], second[0]["weights"], rtol=1e-2, atol=1e-3).mean()
    assert close > 0.98


@pytest.mark.parametrize("mode", ["local_batch", "local_moving"])
def test_normalised_runs_are_evaluated_with_pooled_statistics(log, tmp_path, mode):
    """The checkpoint holds the pooled statistics and each worker's own; evaluating it says what the run said."""
    from safetensors.numpy import load_file

    from paceline.evaluate import evaluate_run

    config = job(log, normalise=mode, workers=2)
    train(config, log, tmp_path / "run")
    path = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))[-1] / "statistics.safetensors"
    stored = load_file(path)
    assert set(stored) == {"pooled", "worker-0", "worker-1"}
    mean, var = np.split(np.stack([stored["worker-0"], stored["worker-1"]]).astype(np.float64), 2, axis=1)
    pooled = np.concatenate([mean.mean(0), (var + mean**2).mean(0) - mean.mean(0) ** 2])
    np.testing.assert_allclose(stored["pooled"], pooled, rtol=1e-5, atol=1e-6)
    assert not np.allclose(stored["worker-0"], stored["worker-1"])
    days = [str(log / f"day_{d}.tsv.gz") for d in (0, 1)]
    train(job(log, normalise=mode, data__days=days[:1]), log, tmp_path / "first")
    said = next(x for x in read_metrics(tmp_path / "run") if x["event"] == "evaluation")["auc"]
    # Which worker had which batch, and so the statistics, is a matter of time; the parameters are not.
    assert evaluate_run(tmp_path / "first", days[1:])["auc"] == pytest.approx(said, abs=0.02)


def test_failures_too_frequent_to_get_anywhere_are_told(log, tmp_path):
    spec = cluster(3, failures={"mtbf_s": 0.001, "return_s": 60})
    with pytest.raises(TrainingError, match=r"no gradient finished in between: failures.mtbf_s \(0.001\) is far below"):
        run(job(log), spec, log, tmp_path / "run")
