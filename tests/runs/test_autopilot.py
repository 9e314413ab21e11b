"""`pace: auto` in whole runs: in virtual time, in threads, over a stop, and what it refuses."""

import json

import pytest
import yaml
from test_virtual import cluster
from tools import assert_same_state, interrupt_at, job, synthetic

from paceline import pace as p
from paceline.errors import ConfigError
from paceline.jobfile import check
from paceline.simulation import simulate
from paceline.training import train

STRAINED = {"stragglers": {"share": 0.25, "factor": 5}, "allreduce": {"latency_ms": 2}}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def auto(log, **changes):
    return job(log, pace={"name": "auto", "candidates": ["sync", "gba"]}, **changes)


def decisions(run):
    path = run / "autopilot.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ends(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def replayed(run, config):
    """The trace through a fresh machine and a fresh autopilot, both of which have to say what is written there."""
    return p.replay((run / "pace.trace").read_text().splitlines(), p.Pilot(config.pace.build_all(config.gradients)))


def test_on_even_workers_it_is_sync_bit_by_bit(log, tmp_path):
    spec = cluster(4, allreduce={"latency_ms": 2})
    simulate(auto(log), spec, log, tmp_path / "auto")
    simulate(job(log), spec, log, tmp_path / "sync")
    assert decisions(tmp_path / "auto") == []
    assert_same_state(tmp_path / "auto", tmp_path / "sync")
    assert ends(tmp_path / "auto")["virtual_seconds"] == ends(tmp_path / "sync")["virtual_seconds"]


def test_under_strain_it_goes_over_to_gba_and_nearly_as_fast(log, tmp_path):
    config, spec = auto(log), cluster(4, **STRAINED)
    simulate(config, spec, log, tmp_path / "auto")
    for pace in ("sync", "gba"):
        simulate(job(log, pace__name=pace), spec, log, tmp_path / pace)
    decided = decisions(tmp_path / "auto")
    assert [line["pace"] for line in decided] == ["gba"]
    assert decided[0]["samples_read"] < 2000
    assert "times as long" in decided[0]["reason"]
    assert decided[0]["predicted"]["gba"] > 2 * decided[0]["predicted"]["sync"]
    seconds = {name: ends(tmp_path / name)["virtual_seconds"] for name in ("auto", "sync", "gba")}
    assert seconds["gba"] < seconds["auto"] < 0.5 * seconds["sync"]
    end = ends(tmp_path / "auto")
    assert (end["pace"], end["samples_read"]) == ("gba", 6000)
    assert end["samples_applied"] + end["samples_dropped"] == 6000
    assert replayed(tmp_path / "auto", config).version == end["updates"]


def test_after_a_stop_it_decides_as_if_there_had_been_none(log, tmp_path, monkeypatch):
    config, spec = auto(log, checkpoint__every=500), cluster(4, **STRAINED)
    simulate(config, spec, log, tmp_path / "whole")
    interrupt_at(monkeypatch, 3300)
    with pytest.raises(KeyboardInterrupt):
        simulate(config, spec, log, tmp_path / "cut")
    simulate(config, spec, log, tmp_path / "cut", resume=True)
    assert [line["pace"] for line in decisions(tmp_path / "cut")] == ["gba"]
    assert ends(tmp_path / "cut")["pace"] == "gba"
    assert ends(tmp_path / "cut")["samples_read"] == 6000
    assert replayed(tmp_path / "cut", config).version == ends(tmp_path / "cut")["updates"]


def test_threads_one_of_which_is_slow(log, tmp_path):
    """In real time: what it is told are measurements, and what it decides can be had from the trace again."""
    config = auto(log, workers=3, inject=[{"slow": "worker-1", "factor": 8}])
    train(config, log, tmp_path / "run")
    end = ends(tmp_path / "run")
    assert end["samples_applied"] + end["samples_dropped"] == 6000
    assert replayed(tmp_path / "run", config).version == end["updates"]
    facts = [line for line in (tmp_path / "run" / "pace.trace").read_text().splitlines() if line.startswith("? ")]
    assert len(facts) == 3 * -(-2000 // 32)  # every gradient of every day
    slow, usual = ([float(line.split()[3]) for line in facts if line.split()[1] == f"worker-{n}"] for n in (1, 0))
    assert min(slow) > 0
    assert sum(slow) / len(slow) > 2 * sum(usual) / len(usual)


def test_a_person_takes_over_and_gives_back(log, tmp_path):
    """By the plan: auto, then sync whatever it costs, then auto again."""
    plan = [{"at": "day_1", "pace": "sync"}, {"at": "day_2", "pace": {"name": "auto", "candidates": ["sync", "gba"]}}]
    simulate(auto(log, switch=plan), cluster(4, **STRAINED), log, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "histograms.jsonl").read_text().splitlines()]
    assert [line["pace"] for line in lines] == ["gba", "sync", "gba"]
    assert [line["pace"] for line in decisions(tmp_path / "run")] == ["gba", "gba"]


def test_the_configuration_comes_back_as_it_was(log):
    config = auto(log)
    again = check(yaml.safe_load(config.to_yaml()), "again")
    assert again.pace == config.pace
    assert job(log, pace="auto").pace.candidates == config.pace.candidates
    assert [pace.name for pace in config.pace.build_all(4)] == ["sync", "gba"]


@pytest.mark.parametrize(
    ("pace", "message"),
    [
        ({"name": "auto", "candidates": ["sync"]}, "must be two or more different paces"),
        ({"name": "auto", "candidates": ["sync", "sync"]}, "must be two or more different paces"),
        ({"name": "auto", "candidates": ["sync", "auto"]}, "must be two or more different paces"),
        ({"name": "auto", "candidates": ["sync", "gbaa"]}, "gbaa"),
        ({"name": "auto", "margin": -1}, "margin"),
        ({"name": "auto", "patience": 0}, "patience"),
        ({"name": "sync", "candidates": ["sync", "gba"]}, "has no option 'candidates'"),
        ({"name": "auto", "max_staleness": 2}, "has no option 'max_staleness'"),
    ],
)
def test_what_it_cannot_be(log, pace, message):
    with pytest.raises(ConfigError, match=message):
        job(log, pace=pace)
