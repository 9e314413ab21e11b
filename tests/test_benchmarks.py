"""The side-by-side benchmark: its table and JSON out of given rates, and the systems that need no peer's packages."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import cases, data, plot, report  # noqa: E402
from benchmarks.bench.process import Failed, Process  # noqa: E402
from benchmarks.bench.rounds import Sizes, measure  # noqa: E402
from benchmarks.systems.worker import FIELDS, Data, Setup  # noqa: E402

SYSTEMS = (
    cases.ours("gba", "gba"),
    cases.System("A", "a"),
    cases.System("B", "b"),
    cases.System("dense", "d", role="limit"),
    cases.System("C", "c"),
)
CASE = cases.Case("deepfm", "deepfm", "bf16", "adagrad", 1000, SYSTEMS)


def made():
    rates = {"paceline gba": [300.0, 150.0, 240.0], "A": [100.0, 50.0, 80.0], "B": [90.0, 60.0, 70.0]}
    rates["dense"] = [400.0, 200.0, 300.0]
    return report.Measured(CASE, rates, {"A": [0.7, 0.6]}, {"C": "no bf16"})


def test_json_has_a_line_for_each_measured_system():
    lines = report.as_json([made()])
    assert [line["system"] for line in lines] == ["paceline gba", "A", "B", "dense"]
    assert lines[0] == {
        "bench": "deepfm",
        "system": "paceline gba",
        "precision": "bf16",
        "optimizer": "adagrad",
        "ids": 1000,
        "samples_per_s": 240,
        "ratio_to_best_peer": 3.0,
    }
    assert lines[1]["ratio_to_best_peer"] == 1.0  # the best peer itself: the higher median
    assert lines[2]["ratio_to_best_peer"] == 0.875


def test_best_peer_is_neither_ours_nor_the_limit():
    assert made().best_peer == "A"
    alone = report.Measured(CASE, {"paceline gba": [1.0], "dense": [2.0]})
    assert alone.best_peer is None
    assert [line["ratio_to_best_peer"] for line in report.as_json([alone])] == [None, None]
    assert "the best peer: none ran" in report.table(alone)


def test_table_shows_rates_ratios_shares_losses_and_who_is_left_out():
    text = report.table(made())
    assert "### deepfm, bf16, adagrad, 1,000 ids" in text
    assert "| **paceline gba** | 240 | 150 – 300 | 3.00x | 80% |  |" in text
    assert "| A | 80 | 50 – 100 | 1.00x | 27% | 0.700 → 0.600 |" in text
    assert "| dense | 300 |" in text
    assert "Left out: C (no bf16)." in text


def test_plot_is_drawn(tmp_path):
    plot.draw([made()], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_every_case_names_modules_that_there_are():
    for case in (*cases.QUICK, *cases.FULL):
        names = [system.name for system in case.systems]
        assert len(set(names)) == len(names)
        for system in case.systems:
            assert (ROOT / "benchmarks" / "systems" / f"{system.module}.py").exists()
    titles = [case.title for case in cases.FULL]
    assert len(set(titles)) == len(titles)


def test_ids_follow_the_power_law_and_fill_their_range():
    drawn = data.draw_ids(np.random.default_rng(0), 1000, 200_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1000
    shares = np.sort(np.bincount(drawn, minlength=1000))[::-1] / len(drawn)
    assert np.count_nonzero(shares) > 990
    expected = np.arange(1, 1001.0) ** -data.EXPONENT
    expected /= expected.sum()
    assert shares[0] == pytest.approx(expected[0], rel=0.5)  # whole numbers out of a continuous law
    assert shares[100:200].sum() == pytest.approx(expected[100:200].sum(), rel=0.2)


def test_field_sizes_add_up():
    assert sum(data.field_sizes(1_000_003)) == 1_000_003
    assert len(data.field_sizes(1_000_003)) == FIELDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("bench")
    data.write(where / "ids-2600", 2600, 1024)
    return where


def test_ids_in_memory_are_those_read_from_the_log(folder):
    from benchmarks.systems import paceline as ours

    where = folder / "ids-2600"
    setup = Setup(str(where), "deepfm", "fp32", "adagrad", batch=256)
    memory = ours.as_batches(Data.read(str(where)), 128)
    for suffix in ("parquet", "tsv.gz"):
        job = ours.make_job(setup, "sync", suffix)
        read = list(ours.day_batches(job.log, job.days[0], ours.Plan(0, 128)))
        assert len(read) == len(memory) == 8
        for a, b in zip(read, memory, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_allclose(a.dense, b.dense, atol=1e-6)


@pytest.mark.parametrize("model", ["deepfm", "dlrm", "lr", "fm"])
def test_our_table_holds_the_drawn_ids_and_no_more(folder, model):
    """What is on the clock is look-up, not growth; and the model learns."""
    from benchmarks.systems import paceline as ours

    where = str(folder / "ids-2600")
    system = ours.build(Setup(where, model, "fp32", "adagrad", "sync", batch=128))
    assert system.job.direct.ids == 2600
    losses = system.train(24)
    assert len(losses) == 48  # two local batches to an update
    assert np.mean(losses[-12:]) < np.mean(losses[:12])
    assert system.job.direct.ids == 2600
    assert system.coordinator.machine.version == 24
    system.train(3)
    assert system.coordinator.machine.version == 27
    assert system.coordinator.machine.account.dropped == 0


def test_a_case_is_measured_in_turns(folder):
    """Processes, protocol and rounds for real: paceline, its limit and plain PyTorch on a tiny case."""
    systems = (cases.ours("sync", "sync"), cases.ours("gba, from .tsv.gz", "gba tsv.gz"), cases.PLAIN, *cases.LIMIT)
    case = cases.Case("deepfm", "deepfm", "bf16", "adagrad", 2600, (*systems, *cases.FUSED))
    sizes = Sizes(rounds=2, seconds=0.001, samples=1024, threads=2, check=8, batch=128)
    found = measure(case, sizes, folder, folder / "no peers")
    assert not {name: why for name, why in found.left_out.items() if "not installed" not in why}
    assert [system.name for system in found.systems] == [system.name for system in systems]
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found.rates.values())
    assert all(last < first for first, last in found.losses.values())
    assert found.best_peer == "plain PyTorch"
    assert json.loads(json.dumps(report.as_json([found])))[0]["samples_per_s"] > 0


def test_rows_alone_and_what_a_system_cannot_do(folder):
    sizes = Sizes(rounds=1, seconds=0.001, samples=1024, threads=2, check=4, batch=128)
    case = cases.Case("rows", "rows", "fp32", "rowwise_adagrad", 2600, (cases.ours("rows", "rows"), cases.PLAIN))
    found = measure(case, sizes, folder, folder)
    assert list(found.rates) == ["paceline rows"]
    assert found.left_out == {"plain PyTorch": "torch has no row-wise Adagrad"}


def test_a_process_that_ends_is_told_with_what_it_said(folder):
    setup = Setup(str(folder / "nothing"), "deepfm", "fp32", "adagrad")
    with pytest.raises(Failed, match=r"ended with 1: .*ids\.npy"):
        Process(Path(sys.executable), "benchmarks.systems.plain_torch", setup, folder / "errors.txt")


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--quick" in done.stdout


def test_without_bf16_every_case_is_there_once_in_fp32():
    for suite in (cases.QUICK, cases.FULL):
        plain = cases.without_bf16(suite)
        assert {case.precision for case in plain} == {"fp32", None}
        wanted = {(c.bench, c.optimizer, c.ids) for c in suite}
        assert {(c.bench, c.optimizer, c.ids) for c in plain} == wanted
        assert len({c.title for c in plain}) == len(plain) < len(suite)
        assert any(system in cases.FILES for case in plain for system in case.systems)


def test_bf16_is_advised_against_only_where_it_is_slower():
    from paceline.runtimes.precision import advice, layer_speeds

    assert advice(50.0, 120.0) is None
    told = advice(54.39, 0.86)
    assert "0.9 GFLOP/s" in told
    assert "54.4" in told
    assert told.endswith("set precision: fp32")
    assert all(speed > 0 for speed in layer_speeds())


def test_a_person_is_told_where_bf16_is_slower_and_only_there(monkeypatch):
    from paceline.runtimes import precision

    notes = []
    for speeds, kind, device in (((50, 3), "bf16", "cpu"), ((50, 90), "bf16", "cpu"), ((50, 3), "fp32", "cpu"),
                                 ((50, 3), "bf16", "cuda")):  # fmt: skip
        monkeypatch.setattr(precision, "layer_speeds", lambda speeds=speeds: speeds)
        precision.warn_of_bf16(kind, device, notes.append)
    assert len(notes) == 1
    assert "3.0 GFLOP/s, in fp32 at 50.0" in notes[0]
