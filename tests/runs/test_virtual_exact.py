"""The central promise of the virtual cluster, and what an interrupt, a resume or a death must not change."""

import itertools
import json

import numpy as np
import pytest
from test_virtual import cluster, histograms, run
from tools import assert_same_state, interrupt_at, job, state_of, synthetic

from paceline import pace as p
from paceline.assembly import assemble
from paceline.clusterspec import ClusterSpec
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import Interrupted
from paceline.pace.trace import read_event
from paceline.params.shard import Weighted
from paceline.runtimes.virtual_cluster import Failures, Speeds, Wires
from paceline.training import train
from paceline.watcher import Silent


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def replayed(config, log, trace):
    """An independent runner: one gradient at a time, computed the moment its grant stands in the trace, applied the
    moment the machine says so. Returns its shard."""
    made = assemble(config, log, replicas=1)
    shard, replica = made.shard, made.replicas[0]
    lines = iter(trace.read_text().splitlines())
    machine = p.from_json(json.loads(next(lines)[2:]))
    batches, gradients = {}, {}
    moments = no_moments(len(made.schema.dense))
    source = iter(())
    days = iter(made.days)
    for line in lines:
        if not line.startswith(">"):
            continue
        event = read_event(line)
        if isinstance(event, p.BatchRead):
            batch = next(source, None)
            if batch is None:
                plan = Plan(len(made.days), config.local_batch, moments=moments)
                source = day_batches(made.log, next(days), plan)
                batch = next(source)
            moments = batch.following.moments
            batches[machine.next_batch] = batch
        for command in p.step(machine, event):
            match command:
                case p.Grant(_, number, _):
                    pulled = made.route.pull(batches[number].flat_ids(), replica.flat)
                    gradients[number] = replica.gradient(batches[number], pulled)[1]
                case p.Apply(version, parts, row_limit, samples, weighing, workers):
                    weighted = [
                        Weighted(gradients.pop(x.gradient), x.share, x.factor, x.token, x.weight) for x in parts
                    ]
                    shard.apply(version, samples, weighted, row_limit, weighing, workers)
                case p.Drop(number, _):
                    del gradients[number]
    return shard


WEIGHT = {"law": "power", "k": 2, "rows": "row", "scales": "step"}
PACES = {
    "async": {"name": "async"},
    "async weighed": {"name": "async", "weight": {"law": "power"}},
    "async weighed rows": {"name": "async", "weight": WEIGHT},
    "gba": {"name": "gba", "max_staleness": 1},
    "damped": {"name": "damped"},
    "backup_workers": {"name": "backup_workers", "backup": 2},
}


@pytest.mark.parametrize("name", PACES)
@pytest.mark.parametrize("stacked", [1, 8])
def test_every_gradient_is_of_the_parameters_as_they_stood_at_its_grant(log, tmp_path, name, stacked):
    """Bitwise (to rounding where gradients are stacked), with workers that differ, die and return."""
    switch = [{"at": 3000, "pace": {"name": "bulk_synchronous"}}, {"at": 4500, "pace": PACES[name]}]
    config = job(log, pace=PACES[name], switch=switch, checkpoint__every=10**9)
    spec = cluster(9, compute={"speed_sigma": 0.5, "jitter_sigma": 0.3}, failures={"mtbf_s": 3, "return_s": 0.5})
    run(config, spec, log, tmp_path / "run", threads=1, stacked=stacked)
    rows, dense, _ = state_of(tmp_path / "run")
    shard = replayed(config, log, tmp_path / "run" / "pace.trace")
    blocks = list(shard.table.blocks())
    ids = np.concatenate([b.ids for b in blocks])
    order = np.argsort(ids)
    np.testing.assert_array_equal(ids[order], rows["id"])
    exact = {"rtol": 0, "atol": 0} if stacked == 1 else {"rtol": 1e-2, "atol": 2e-3}
    np.testing.assert_allclose(np.concatenate([b.weights for b in blocks])[order], rows["weights"], **exact)
    for key, value in shard.dense.weights().items():
        np.testing.assert_allclose(value.numpy(), dense[key], **exact)


DELAY = {"sparse": {"name": "adagrad_delay"}, "dense": {"name": "adagrad_delay", "lr": 0.003}}


@pytest.mark.parametrize("name", ["async", "damped"])
def test_every_gradient_brings_back_the_sums_that_it_was_computed_on(log, tmp_path, name):
    config = job(log, pace=PACES[name], optimizer=DELAY, checkpoint__every=10**9)
    spec = cluster(9, compute={"speed_sigma": 0.5, "jitter_sigma": 0.3}, failures={"mtbf_s": 3, "return_s": 0.5})
    run(config, spec, log, tmp_path / "run", threads=2)
    rows, dense, _ = state_of(tmp_path / "run")
    shard = replayed(config, log, tmp_path / "run" / "pace.trace")
    blocks = list(shard.table.blocks())
    order = np.argsort(np.concatenate([b.ids for b in blocks]))
    for part in ("weights", "slots"):
        assert np.array_equal(np.concatenate([getattr(b, part) for b in blocks])[order], rows[part])
    for key, value in (*shard.dense.weights().items(), *shard.dense.slots()[0].items()):
        assert np.array_equal(value.numpy(), dense[key])
    width = rows["weights"].shape[1]
    assert not np.array_equal(rows["slots"][:, :width], rows["slots"][:, width : 2 * width]), "nothing was missed"


class Impatient(Silent):
    """Interrupts, as Ctrl-C would, at the n-th tenth of a second."""

    def __init__(self, after):
        self.left = after

    def tick(self, status):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupt_never_falls_between_a_decision_and_its_execution(log, tmp_path):
    config = job(log, batch__global=32, batch__local=8, checkpoint__every=10**9)
    spec = cluster(50, compute={"jitter_sigma": 0.2})
    run(config, spec, log, tmp_path / "whole")
    folder, stops = tmp_path / "parts", 0
    for after in itertools.count(1):
        try:
            run(
                config,
                spec,
                log,
                folder,
                resume=stops > 0 and (folder / "config.yaml").exists(),
                watcher=Impatient(after),
            )
        except (KeyboardInterrupt, Interrupted):
            stops += 1
            saved = sorted((folder / "checkpoints").glob("[0-9]*"))
            if saved:
                state = json.loads((saved[-1] / "state.json").read_text())
                assert state["machine"]["version"] == state["version"]
            continue
        break
    assert stops >= 1
    assert_same_state(tmp_path / "whole", folder)


def test_idle_time_survives_a_resume_in_the_middle_of_a_day(log, tmp_path, monkeypatch):
    config = job(log, checkpoint__every=500)
    spec = cluster(4, stragglers={"share": 0.25, "factor": 5})
    whole = run(config, spec, log, tmp_path / "whole")
    interrupt_at(monkeypatch, 3200)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run(config, spec, log, tmp_path / "parts")
    end = run(config, spec, log, tmp_path / "parts", resume=True)
    assert end["idle_share"] == pytest.approx(whole["idle_share"], abs=0.03)
    for one, other in zip(histograms(tmp_path / "whole"), histograms(tmp_path / "parts"), strict=True):
        assert sum(one["staleness"]) == sum(other["staleness"])
        assert one["dropped_share"] == other["dropped_share"]
        assert other["samples_per_virtual_s"] == pytest.approx(one["samples_per_virtual_s"], rel=0.05)


def test_a_real_run_goes_on_in_a_virtual_cluster_and_back(log, tmp_path):
    days = [str(log / f"day_{d}.tsv.gz") for d in range(3)]
    train(job(log, data__days=days[:1]), log, tmp_path / "run")
    end = run(job(log, data__days=days[:2]), cluster(4), log, tmp_path / "run", resume=True)
    assert end["virtual_seconds"] == pytest.approx(16 * 0.1)
    assert end["samples_per_virtual_s"] == pytest.approx(2000 / 1.6, rel=1e-3)
    end = train(job(log, data__days=days), log, tmp_path / "run", resume=True)
    assert end["virtual_seconds"] is None
    train(job(log), log, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_statistics_of_workers_that_are_gone_are_not_pooled(log, tmp_path):
    from safetensors.numpy import load_file

    days = [str(log / f"day_{d}.tsv.gz") for d in range(2)]
    run(job(log, data__days=days[:1], normalise="local_batch"), cluster(8), log, tmp_path / "run")
    run(job(log, data__days=days, normalise="local_batch"), cluster(2), log, tmp_path / "run", resume=True)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))[-1]
    assert set(load_file(newest / "statistics.safetensors")) == {"pooled", "worker-0", "worker-1"}


def test_a_worker_that_returns_at_once_loses_its_gradient_only():
    spec = cluster(1, failures={"mtbf_s": 10, "return_s": 0})
    failures = Failures(spec)
    times = []
    now = 0.0
    for _ in range(200):
        dies, back = failures.next(0, now)
        assert dies == back > now
        times.append(dies - now)
        now = back
    assert np.mean(times) == pytest.approx(10, rel=0.25)


def test_latency_does_not_keep_servers_busy(log, tmp_path):
    """Servers that have hardly anything to do cost hardly anything, however long the way to them is."""
    config = job(log, pace__name="async")
    far = {"network": {"latency_ms": 200, "bandwidth_gbps": 1e9}}
    free = run(config, cluster(20, **far), log, tmp_path / "free")["virtual_seconds"]
    busy = run(config, cluster(20, **far, servers={"count": 1, "ms_per_mb": 5}), log, tmp_path / "busy")
    assert busy["virtual_seconds"] == pytest.approx(free, rel=0.03)
    wires = Wires(cluster(1, **far, servers={"count": 1, "ms_per_mb": 1000}))
    assert wires.served(wires.asked(0.0), 1_000_000) == pytest.approx(1.2)
    assert wires.served(0.7, 1_000_000) == pytest.approx(2.2), "one after another"


def test_spells_do_not_depend_on_what_was_never_finished():
    spec = ClusterSpec.model_validate(
        {"workers": 1, "compute": {"fixed_ms": 100, "per_sample_us": 0}}
        | {"stragglers": {"kind": "bursts", "factor": 5, "slow_s": 1, "fast_s": 2}}
    )
    fresh, other = Speeds(spec), Speeds(spec)
    other.done(0, 0, 10**6 * 0 + 1, 50.0)  # reckoned far ahead, then its worker died
    starts = np.arange(0, 30, 0.7)
    assert [fresh.done(0, 1, 1, s) for s in starts] == [other.done(0, 1, 1, s) for s in starts]
    took = np.array([fresh.done(0, 1, 1, s) - s for s in starts])
    assert took.min() == pytest.approx(0.1)
    assert took.max() == pytest.approx(0.5)
