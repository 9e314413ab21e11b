"""`paceline plan` as a person calls it: what it prints, and what it says to mistakes."""

import json

import pytest
import yaml
from tools import job, synthetic

from paceline.cli import app
from paceline.errors import PacelineError


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("planning"), rows=9000, days=2)


@pytest.fixture
def files(log, tmp_path):
    values = job(log).model_dump(mode="json", by_alias=True, exclude_unset=True)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "cluster.yaml").write_text(
        "workers: 4\ncompute: {fixed_ms: 4, per_sample_us: 60}\nservers: {count: 2, ms_per_mb: 20}\n"
    )
    return str(tmp_path / "job.yaml"), str(tmp_path / "cluster.yaml")


def call(*words):
    return app(["plan", *words], standalone_mode=False)


def test_for_a_cluster(files, tmp_path, capsys):
    call(*files, "--out", str(tmp_path / "out"), "--check-rows", "2600", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["ground"] == "cluster"
    assert told["choice"]["workers"] == 4
    stored = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert stored == told, "the plan carries its inputs and its reasons"
    assert (tmp_path / "out" / "job.yaml").read_text().startswith("# planned: ")


def test_overrides_go_where_they_belong(files, capsys):
    call(*files, "workers=2", "cluster.servers.count=1", "batch.global=64", "--pace", "gba", "--check-rows", "2600")
    out = capsys.readouterr().out
    assert "workers      │ 2" in out
    assert "batch.global │ 64" in out
    assert "the simulator" in out.lower()
    assert "sync" not in out


def test_for_this_machine(files, tmp_path, capsys):
    call(files[0], "--seconds", "0.4", "--check-rows", "2600", "--out", str(tmp_path / "out"))
    out = capsys.readouterr().out
    assert "the plan for this machine" in out
    stored = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert stored["inputs"]["machine"]["cores"] >= stored["choice"]["workers"]


def test_a_cluster_that_computes_in_no_time_is_refused(files):
    with pytest.raises(
        PacelineError, match=r"compute.fixed_ms and compute.per_sample_us are 0: .* compute.measure: true"
    ):
        call(*files, "cluster.compute.fixed_ms=0", "cluster.compute.per_sample_us=0")


def test_a_clusters_times_may_be_measured_here(files, capsys):
    call(*files, "cluster.compute.measure=true", "--seconds", "0.4", "--check-rows", "2600", "--json")
    told = json.loads(capsys.readouterr().out)
    compute = told["inputs"]["cluster"]["compute"]
    assert not compute["measure"]
    assert compute["fixed_ms"] != 4
    assert len(told["inputs"]["machine"]["timings"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["workers=4"], "'workers=4' is for a cluster, and no cluster.yaml is given"),
        (["--max-servers", "4"], "--max-servers belongs to a cluster"),
        (["--memory-gb", "0"], "--memory-gb 0 must be above 0"),
        (["--memory-gb", "nan"], "--memory-gb nan must be above 0"),
        (["--pace", "quick"], "--pace 'quick' is no pace to plan for; choose from sync"),
        (["--global-batch", "many"], "--global-batch 'many' must be LOW:HIGH"),
        (["missing.yaml"], "missing.yaml: there is no such file"),
        (["batch.globl=3"], "batch.globl: unknown key"),
    ],
)
def test_mistakes_are_told_in_one_line(files, words, message):
    with pytest.raises(PacelineError, match=message) as found:
        call(files[0], *words)
    assert found.value.exit_code == 2
    assert len(str(found.value).splitlines()) == 1
