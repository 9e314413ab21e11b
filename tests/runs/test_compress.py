"""Runs whose workers hold back some of their dense gradients (DCT), in threads and on a virtual cluster."""

import pytest
import torch
import yaml
from test_virtual import cluster
from tools import assert_same_run, assert_same_state, held, interrupt_at, job, state_of, synthetic, train

from paceline.errors import ConfigError, RunDirError
from paceline.exchange.thin import thin_bytes
from paceline.jobfile import check
from paceline.params.feedback import Feedback, Thinning
from paceline.rundir import read_metrics
from paceline.runtimes.holding import Holding
from paceline.runtimes.statistics import Statistics
from paceline.runtimes.virtual_cluster import Wires
from paceline.simulation import simulate
from paceline.watcher import Silent

GRADIENTS = {"gradients": {"keep": 0.05}, "refresh": 10}


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def compressed(log, **changes):
    return job(log, **{"compress": GRADIENTS, **changes})


@pytest.mark.parametrize("pace", ["sync", "gba"])
def test_everything_kept_is_bitwise_no_compression(log, tmp_path, pace):
    config = {"workers": 1, "pace__name": pace}
    train(job(log, **config), log, tmp_path / "plain")
    train(job(log, compress={"gradients": {"keep": 1}}, **config), log, tmp_path / "kept")
    assert_same_state(tmp_path / "plain", tmp_path / "kept")
    assert not held(tmp_path / "kept")


@pytest.mark.parametrize("pace", ["sync", "async", "bounded_staleness", "backup_workers", "gba"])
def test_workers_that_hold_back_close_the_account(log, tmp_path, pace):
    end = train(compressed(log, workers=3, pace__name=pace), log, tmp_path / "run")
    assert end["samples_read"] == 6000 == end["samples_applied"] + end["samples_dropped"]
    found = held(tmp_path / "run")
    assert set(found) == {"worker-0", "worker-1", "worker-2"}
    assert all(bool(state.isfinite().all()) for state in found.values())
    assert any(bool(state[:-2].any()) for state in found.values())


def test_it_trains_otherwise_and_still_learns(log, tmp_path):
    plain = train(job(log, workers=1), log, tmp_path / "plain")
    end = train(compressed(log, workers=1), log, tmp_path / "run")
    assert end["logloss"] != plain["logloss"]
    assert end["logloss"] < plain["logloss"] + 0.02


@pytest.mark.parametrize("moment", [100, 2000, 2500, 5900])
def test_stop_and_resume_is_bitwise_never_stopped(log, tmp_path, moment, monkeypatch):
    """A stop falls within an update, whose gradients are computed again: what was held back is that of before them."""
    config = compressed(log, workers=1)
    train(config, log, tmp_path / "whole")
    interrupt_at(monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, log, tmp_path / "cut")
    train(config, log, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("workers", [2, 4])
def test_so_is_a_virtual_cluster_with_several_workers(log, tmp_path, workers, monkeypatch):
    config, spec = compressed(log), cluster(workers)
    simulate(config, spec, log, tmp_path / "whole")
    interrupt_at(monkeypatch, 2500)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        simulate(config, spec, log, tmp_path / "cut")
    simulate(config, spec, log, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert len(held(tmp_path / "cut")) == workers


def test_one_worker_is_the_same_in_threads_and_on_a_virtual_cluster(log, tmp_path):
    train(compressed(log, workers=1), log, tmp_path / "threads")
    simulate(compressed(log), cluster(1), log, tmp_path / "virtual")
    assert_same_run(tmp_path / "threads", tmp_path / "virtual")


def test_another_number_of_workers_goes_on(log, tmp_path, monkeypatch):
    """Newcomers hold nothing back; of those that are gone, what they held is lost, which is said once."""
    interrupt_at(monkeypatch, 2500)
    with pytest.raises(KeyboardInterrupt):
        train(compressed(log, workers=3), log, tmp_path / "run")
    before = held(tmp_path / "run")
    notes = Notes()
    train(compressed(log, workers=1), log, tmp_path / "run", resume=True, watcher=notes)
    told = [text for text in notes.said if "held back" in text]
    assert len(told) == 1
    assert "is gone, and what it had held back of its gradients is lost" in told[0]
    after = held(tmp_path / "run")
    assert set(before) == {"worker-0", "worker-1", "worker-2"}
    assert set(after) == {"worker-0"}


def test_newcomers_start_from_zero(log, tmp_path, monkeypatch):
    days = [str(log / f"day_{d}.tsv.gz") for d in range(2)]
    train(compressed(log, workers=1, data__days=days[:1]), log, tmp_path / "run")
    notes = Notes()
    end = train(compressed(log, workers=2, data__days=days), log, tmp_path / "run", resume=True, watcher=notes)
    assert end["samples_read"] == 4000
    assert set(held(tmp_path / "run")) == {"worker-0", "worker-1"}
    assert not [text for text in notes.said if "held back" in text]


def test_a_run_without_goes_on_with_and_back(log, tmp_path):
    days = [str(log / f"day_{d}.tsv.gz") for d in range(3)]
    options = {"workers": 1}
    train(job(log, data__days=days[:1], **options), log, tmp_path / "run")
    assert not held(tmp_path / "run")
    train(compressed(log, data__days=days[:2], **options), log, tmp_path / "run", resume=True)
    assert held(tmp_path / "run")["worker-0"][:-2].any()
    end = train(job(log, data__days=days, **options), log, tmp_path / "run", resume=True)
    assert end["samples_applied"] == 6000
    assert not held(tmp_path / "run")


def test_what_another_model_held_back_is_refused():
    other, ours = (Statistics(torch.zeros(0), Holding(sizes, Thinning(0.1, 5))) for sizes in ([300], [400]))
    other.holding.of("worker-0").filter(torch.randn(300))
    with pytest.raises(RunDirError, match=r"what worker-0 held back .* does not fit the model \(303 numbers .* 403\)"):
        ours.load(other.tensors())


NETWORK = {"latency_ms": 0, "bandwidth_gbps": 0.001}  # 125 bytes a millisecond


def virtual_seconds(folder):
    return read_metrics(folder)[-1]["virtual_seconds"]


def counting(monkeypatch):
    """Entries of each gradient, and the entries that left, from now on."""
    sent, thinner = [], Feedback.filter

    def counted(self, gradient, version=None):
        found = thinner(self, gradient, version)
        sent.append((gradient.numel(), int(found.count_nonzero())))
        return found

    monkeypatch.setattr(Feedback, "filter", counted)
    return sent


def test_a_push_takes_the_time_of_what_is_sent(log, tmp_path, monkeypatch):
    """One worker, whose bytes alone take time: values and a mask, or values and places."""
    spec = cluster(1, network=NETWORK, compute={"fixed_ms": 0})
    simulate(job(log, pace__name="async"), spec, log, tmp_path / "plain")
    sent = counting(monkeypatch)
    simulate(compressed(log, pace__name="async"), spec, log, tmp_path / "thin")
    saved = virtual_seconds(tmp_path / "plain") - virtual_seconds(tmp_path / "thin")
    assert len(sent) == 189
    assert saved == pytest.approx(sum(4 * n - sum(thin_bytes(n, left)) for n, left in sent) / 125e3, rel=1e-6)
    assert saved > 0.5 * sum(4 * n for n, _ in sent) / 125e3


def test_a_ring_passes_on_what_each_worker_sends(log, tmp_path, monkeypatch):
    """Two workers and 4 gradients for an update: half of all that is thin goes to the other one, instead of a
    reduce-scatter and an all-gather of the whole."""
    spec = cluster(2, allreduce=NETWORK, compute={"fixed_ms": 0})
    simulate(job(log), spec, log, tmp_path / "plain")
    sent = counting(monkeypatch)
    simulate(compressed(log), spec, log, tmp_path / "thin")
    saved = virtual_seconds(tmp_path / "plain") - virtual_seconds(tmp_path / "thin")
    updates = state_of(tmp_path / "thin")[2]["machine"]["account"]["updates"]
    size = 4 * sent[0][0]
    assert saved == pytest.approx((updates * size - sum(sum(thin_bytes(*each)) for each in sent) / 2) / 125e3, rel=1e-6)
    assert saved > 0


def test_a_ring_of_many_sums_the_whole_where_that_is_less():
    wires = Wires(cluster(64, allreduce=NETWORK))
    whole = wires.reduced(0.0, 125_000, 64)
    assert wires.gathered(0.0, 125_000, 64 * 6_250, 64) == whole
    assert wires.gathered(0.0, 125_000, 64 * 1_250, 64) == pytest.approx(63 / 64 * 64 * 1_250 / 125e3)
    assert wires.gathered(5.0, 125_000, 1_250, 1) == 5.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gradients": {"keep": 0}}, "compress.gradients.keep: 0 "),
        ({"gradients": {"keep": 1.5}}, "compress.gradients.keep: 1.5 "),
        ({"gradients": {"keep": "a"}}, "compress.gradients.keep: 'a' "),
        ({"gradients": {"keep": float("nan")}}, "compress.gradients.keep: nan "),
        ({"gradients": {}}, "compress.gradients.keep"),
        ({"gradients": {"keep": 0.1, "share": 1}}, "compress.gradients.share"),
        ({"gradients": {"keep": 0.1}, "refresh": 0}, "compress.refresh: 0 "),
        ({"gradients": {"keep": 0.1}, "refresh": 1.5}, "compress.refresh: 1.5 "),
        ({"gradient": {"keep": 0.1}}, "compress.gradient"),
        ({"activations": {"keep": 2}}, "compress.activations.keep: 2 "),
        ({"refresh": 5}, "compress: gradients and activations are both left out"),
        ({}, "compress: gradients and activations are both left out"),
        (3, "compress"),
    ],
)
def test_bad_input_names_the_key(log, given, told):
    with pytest.raises(ConfigError) as caught:
        job(log, compress=given)
    assert str(caught.value).startswith(f"test: {told}")
    assert str(caught.value).count("test:") == 1


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        (None, "travel between the processes of a cluster only; add cluster, or leave activations out"),
        ({"nodes": 2, "exchange": "push_pull"}, "cluster.exchange is push and pull, which sends no partial sums; use"),
        ({"nodes": 2, "exchange": "rows"}, "cluster.exchange is rows, which sends no partial sums; use exchange: auto"),
    ],
)
def test_sums_to_compress_are_there(log, cluster, told):
    given = {"compress": {"activations": {"keep": 0.1}}, "workers": 2}
    with pytest.raises(ConfigError, match=r"^test: compress\.activations: ") as caught:
        job(log, **given, **({} if cluster is None else {"cluster": cluster}))
    assert told in str(caught.value)
    assert job(log, **given, cluster={"nodes": 2}).compress.sums == 0.1


def test_a_configuration_is_written_as_it_was_read(log):
    config = compressed(log)
    values = yaml.safe_load(config.to_yaml())
    assert values["compress"] == {"gradients": {"keep": 0.05}, "refresh": 10}
    assert check(values, "again").compress == config.compress
    assert "compress" not in yaml.safe_load(job(log).to_yaml())
