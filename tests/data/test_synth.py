"""The synthetic log: what is written, and that its truth is what it claims to be."""

from __future__ import annotations

import errno
import gzip
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from numpy.typing import NDArray

from paceline.data.synth import Chunk, SynthSpec, cardinalities, chunks, truth_of
from paceline.data.synth_write import BestScores, write_log
from paceline.errors import UserError

CRITEO = SynthSpec(rows=3000, days=3, seed=5)
WEEK = replace(CRITEO, days=7, rows=7)
PARQUET = replace(CRITEO, layout="parquet", multi=2)


def brute_auc(score: NDArray[np.float64], label: NDArray[np.int8]) -> float:
    """Share of (click, no click) pairs in the right order, pair by pair; ties count half."""
    return float((0.5 + 0.5 * np.sign(score[label == 1][:, None] - score[label == 0])).mean())


def binned_auc(score: NDArray[np.float64], label: NDArray[np.int8]) -> float:
    scores = BestScores()
    scores.add(score, label)
    return scores.best().best_auc or 0.0


def joined(spec: SynthSpec) -> dict[str, NDArray[Any]]:
    """Every value of the log, whatever the chunks."""
    parts = list(chunks(spec))
    arrays = ("label", "numeric", "numeric_missing", "categorical", "categorical_missing", "probability")
    whole: dict[str, NDArray[Any]] = {n: np.concatenate([getattr(c, n) for c in parts]) for n in arrays}
    for m in range(spec.multi):
        whole[f"bag{m}"] = np.concatenate([c.bags[m][1] for c in parts])
        whole[f"length{m}"] = np.concatenate([np.diff(c.bags[m][0]) for c in parts])
    return whole


def day_chunk(spec: SynthSpec, day: int, rows: int) -> Chunk:
    return truth_of(spec).chunk(day, 0, rows)


def optional(values: NDArray[Any], missing: NDArray[np.bool_]) -> list[int | None]:
    return [None if m else int(x) for x, m in zip(values, missing, strict=True)]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("spec", [CRITEO, PARQUET, replace(PARQUET, numeric=2, categorical=30, multi=3, alpha=1.0)])
def test_chunk_size_changes_no_value(spec: SynthSpec) -> None:
    whole, cut = joined(spec), joined(replace(spec, chunk_rows=77))
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_rows_depend_on_seed_and_day_but_not_on_how_many_there_are() -> None:
    base, long = day_chunk(CRITEO, 1, 500), day_chunk(replace(CRITEO, rows=90_000), 1, 2000)
    np.testing.assert_array_equal(base.categorical, long.categorical[:500])
    np.testing.assert_array_equal(base.probability, long.probability[:500])
    for other in (day_chunk(replace(CRITEO, seed=6), 1, 500), day_chunk(CRITEO, 0, 500)):
        assert abs(np.corrcoef(base.probability, other.probability)[0, 1]) < 0.2


def test_layouts_share_draws_but_not_the_look_of_ids() -> None:
    assert (SynthSpec(9, 1, multi=2).multi, SynthSpec(9, 1, multi=2, layout="parquet").multi) == (0, 2)
    one, other = day_chunk(CRITEO, 0, 2000), day_chunk(replace(CRITEO, layout="parquet", multi=0), 0, 2000)
    np.testing.assert_array_equal(one.probability, other.probability)
    for f in range(26):
        pairs = np.unique(np.stack([one.categorical[:, f], other.categorical[:, f]]), axis=1).shape[1]
        assert pairs == np.unique(one.categorical[:, f]).size == np.unique(other.categorical[:, f]).size


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0, 1.1, 1.6, 4.0])
def test_ids_follow_the_bounded_power_law(alpha: float) -> None:
    spec = replace(PARQUET, alpha=alpha)
    n, window = 100_000, cardinalities(spec)[0]
    count = np.sort(np.unique(day_chunk(spec, 0, n).categorical[:, 0], return_counts=True)[1])[::-1]
    edges = np.arange(1, window + 2, dtype=np.float64)
    mass = np.log(edges) if alpha == 1.0 else edges ** (1 - alpha) / (1 - alpha)
    expected = n * np.diff(mass) / (mass[-1] - mass[0])
    assert count.size <= window
    # Sorting lifts the head of a uniform law, by a few standard deviations of a count.
    np.testing.assert_allclose(count[:5], expected[:5], atol=5 * math.sqrt(expected[0]))
    if 0 < alpha < 2:
        slope = np.polyfit(np.log(np.arange(1, 31) + 0.5), np.log(count[:30]), 1)[0]
        assert slope == pytest.approx(-alpha, abs=0.1)


def test_vocabulary_is_spread_unevenly_and_never_exceeded() -> None:
    for vocabulary in (500, 2_000_000, 50_000_000):
        sizes = cardinalities(replace(PARQUET, vocabulary=vocabulary))
        assert (min(sizes), sum(sizes), max(sizes) > vocabulary / 8) == (3, vocabulary, True)
    spec = replace(PARQUET, rows=60_000, days=12, vocabulary=3000, alpha=0.5, multi=0)
    ids = joined(spec)["categorical"]
    for f, size in enumerate(cardinalities(spec)):
        assert np.setdiff1d(ids[:, f], [0]).size <= size  # 0 is what is missing


def test_new_ids_appear_in_some_fields_only() -> None:
    first, last = day_chunk(WEEK, 0, 50_000).categorical, day_chunk(WEEK, 6, 50_000).categorical
    new = [float((~np.isin(last[:, f], first[:, f])).mean()) for f in (0, 12)]
    assert new[0] < 0.01 < 0.15 < new[1]  # field 12 replaces a twentieth of its ids each day, field 0 none


def test_numbers_and_missing_values_look_like_criteo() -> None:
    c = day_chunk(CRITEO, 0, 20_000)
    assert not c.categorical[c.categorical_missing].any()
    shares = [c.numeric_missing[:, 1].mean(), c.numeric_missing[:, 11].mean(), c.categorical_missing[:, 21].mean()]
    assert [*shares, c.categorical_missing[:, CRITEO.user_field].mean()] == pytest.approx([0, 0.76, 0.76, 0], abs=0.02)
    assert c.numeric.min() == 0
    assert c.numeric[:, 4].max() > 50 * np.median(c.numeric[:, 4])  # a long tail


def test_bags_are_sets_of_0_to_8_ids() -> None:
    c = day_chunk(PARQUET, 0, 5000)
    assert len(c.bags) == 2
    for offsets, ids in c.bags:
        length = np.diff(offsets)
        assert (offsets[0], offsets[-1], length.min(), length.max()) == (0, ids.size, 0, 8)
        assert all(np.unique(bag).size == bag.size for bag in np.split(ids, offsets[1:-1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spec", [SynthSpec(7, 7), SynthSpec(7, 7, layout="parquet")])
def test_best_auc_is_as_planned_and_labels_follow_the_truth(seed: int, spec: SynthSpec) -> None:
    for day in (0, 6):
        c = day_chunk(replace(spec, seed=seed), day, 40_000)
        assert 0.775 < binned_auc(c.probability, c.label) < 0.825
        for rows in np.array_split(np.argsort(c.probability), 10):  # within 4 standard deviations
            assert c.label[rows].mean() == pytest.approx(c.probability[rows].mean(), abs=4 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
def test_click_rate_is_met_on_every_day(rate: float) -> None:
    for day in range(3):
        assert day_chunk(replace(CRITEO, click_rate=rate), day, 40_000).probability.mean() == pytest.approx(
            rate, rel=0.1
        )


def test_the_truth_drifts() -> None:
    truth, last = truth_of(WEEK), day_chunk(WEEK, 6, 30_000)
    auc = [binned_auc(truth.probability(last, day), last.label) for day in (0, 3, 5, 6)]
    assert auc[0] + 0.05 < auc[1] < auc[2] < auc[3] == binned_auc(last.probability, last.label)
    still = replace(WEEK, drift=0.0)
    last = day_chunk(still, 6, 20_000)
    assert np.corrcoef(truth_of(still).probability(last, 0), last.probability)[0, 1] > 0.999


def test_ids_count_both_alone_and_in_pairs() -> None:
    """Of two fields, the table of true logits is explained neither by main effects alone nor without them."""
    spec = replace(PARQUET, numeric=0, categorical=2, multi=0, vocabulary=60)
    c = day_chunk(spec, 0, 50_000)
    logit = np.log(c.probability / (1 - c.probability))
    onehot = [(c.categorical[:, f, None] == np.unique(c.categorical[:, f])).astype(float) for f in range(2)]
    design = np.concatenate(onehot, axis=1)
    rest = logit - design @ np.linalg.lstsq(design, logit, rcond=None)[0]
    assert 0.05 < rest.var() / logit.var() < 0.8


def test_best_scores_equal_brute_force() -> None:
    c = day_chunk(CRITEO, 0, 3000)
    scores, head, tail, one_class = BestScores(), BestScores(), BestScores(), BestScores()
    scores.add(c.probability, c.label)
    head.add(c.probability[:1000], c.label[:1000])
    tail.add(c.probability[1000:], c.label[1000:])
    tail.merge(head)
    best = scores.best()
    assert tail.best() == best
    assert best.best_auc == pytest.approx(brute_auc(c.probability, c.label), abs=2e-5)
    loss = -np.log(np.where(c.label == 1, c.probability, 1 - c.probability)).mean()
    assert best.best_logloss == pytest.approx(loss, abs=1e-8)
    assert (best.rows, best.clicks) == (3000, int(c.label.sum()))
    one_class.add(np.array([0.2, 0.4]), np.zeros(2, np.int8))
    assert one_class.best().best_auc is None


def test_criteo_lines(tmp_path: Path) -> None:
    report = write_log(CRITEO, tmp_path)
    assert names(tmp_path) == ["day_0.tsv.gz", "day_1.tsv.gz", "day_2.tsv.gz", "truth.json"]
    for c, file in zip(chunks(CRITEO), report.files, strict=True):
        lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
        assert len(lines) == 1000
        for r, line in enumerate(lines):
            numbers = ["" if x is None else str(x) for x in optional(c.numeric[r], c.numeric_missing[r])]
            ids = ["" if x is None else f"{x:08x}" for x in optional(c.categorical[r], c.categorical_missing[r])]
            assert line.split("\t") == [str(c.label[r]), *numbers, *ids]
            assert (line.count("\t"), line[0] in "01") == (39, True)


def test_text_is_the_same_in_every_compression_and_chunk_size(tmp_path: Path) -> None:
    spec = replace(CRITEO, rows=15_000, days=2)
    text = b""
    for compression in ("none", "gz", "zst"):
        one, other = tmp_path / f"{compression}1", tmp_path / f"{compression}2"
        files = write_log(replace(spec, compression=compression), one).files
        write_log(replace(spec, compression=compression, chunk_rows=999), other)
        assert [f.read_bytes() for f in files] == [(other / f.name).read_bytes() for f in files]
        raw = files[0].read_bytes()
        if compression == "gz":
            assert raw[4:8] == bytes(4)  # no time in the header
            raw = gzip.decompress(raw)
        elif compression == "zst":
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        text = text or raw
        assert raw == text
    assert len(text) > 1 << 20  # more than one block, so that blocks were cut across chunks


def test_parquet_schema_and_values(tmp_path: Path) -> None:
    spec = replace(PARQUET, chunk_rows=400)
    report = write_log(spec, tmp_path)
    assert names(tmp_path) == ["day_0.parquet", "day_1.parquet", "day_2.parquet", "truth.json"]
    file = pq.ParquetFile(report.files[0])
    assert [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)] == [400, 400, 200]
    kinds = {f.name: str(f.type).replace("element", "item") for f in file.schema_arrow}
    expected = {"click": "int8"} | {f"i{i}": "int32" for i in range(1, 14)} | {f"c{i}": "int64" for i in range(1, 27)}
    assert kinds == expected | {"m1": "list<item: int64>", "m2": "list<item: int64>", "user": "int64"}
    table, c = file.read(), day_chunk(spec, 0, 1000)
    np.testing.assert_array_equal(table["click"].to_numpy(), c.label)
    for letter, x, missing in (("i", c.numeric, c.numeric_missing), ("c", c.categorical, c.categorical_missing)):
        for f, column in enumerate(x.T):
            assert table[f"{letter}{f + 1}"].to_pylist() == optional(column, missing[:, f])
    for m, (offsets, ids) in enumerate(c.bags):
        assert table[f"m{m + 1}"].to_pylist() == [b.tolist() for b in np.split(ids, offsets[1:-1])]
    assert table["user"].to_pylist() == table[f"c{spec.user_field + 1}"].to_pylist()
    assert max(table["c3"].drop_null().to_pylist()) > 1 << 60  # far beyond what a float64 holds exactly
    assert max(table["c1"].drop_null().to_pylist()) < 1 << 53


def test_truth_file_is_the_report(tmp_path: Path) -> None:
    spec, seen = replace(CRITEO, rows=3002, chunk_rows=400), list[int]()
    report = write_log(spec, tmp_path, seen.append)
    assert (sum(seen), max(seen)) == (3002, 400)
    content = json.loads((tmp_path / "truth.json").read_text())
    assert content == json.loads(json.dumps(report.as_json()))
    assert SynthSpec(**content["spec"]) == spec
    assert [d["file"] for d in content["days"]] == [f"day_{d}.tsv.gz" for d in range(3)]
    assert [d["rows"] for d in content["days"]] == [1001, 1001, 1000]
    for d, c in zip(content["days"], chunks(replace(spec, chunk_rows=2000)), strict=True):
        assert d["clicks"] == int(c.label.sum())
        assert d["best_auc"] == pytest.approx(brute_auc(c.probability, c.label), abs=5e-5)
    assert content["total"] == asdict(report.total)
    loss = sum(d.best_logloss * d.rows for d in report.days) / 3002
    assert (report.total.rows, report.total.best_logloss) == (3002, pytest.approx(loss))


def test_a_log_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    write_log(CRITEO, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / "day_0.tsv.gz").stat()
    with pytest.raises(UserError, match="holds a log already"):
        write_log(replace(CRITEO, seed=9), tmp_path)
    assert (tmp_path / "day_0.tsv.gz").stat().st_mtime_ns == before.st_mtime_ns
    write_log(replace(CRITEO, seed=9, days=1), tmp_path, overwrite=True)
    assert names(tmp_path) == ["day_0.tsv.gz", "notes.txt", "truth.json"]  # stale days are gone, other files are not
    with pytest.raises(UserError, match="is a file"):
        write_log(CRITEO, tmp_path / "notes.txt")


@pytest.mark.parametrize("spec", [CRITEO, PARQUET])
def test_a_failure_leaves_no_half_file(spec: SynthSpec, tmp_path: Path) -> None:
    written: list[int] = []

    def full(rows: int) -> None:
        written.append(rows)
        if sum(written) > 1200:  # in the middle of the second day
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_log(replace(spec, chunk_rows=300), tmp_path, full)
    assert [n.split(".")[0] for n in names(tmp_path)] == ["day_0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": 0}, {"rows": 2}, {"layout": "csv"}, {"compression": "xz"}, {"numeric": 5}, {"categorical": 5},
        {"click_rate": 1.0}, {"click_rate": math.nan}, {"drift": math.inf}, {"vocabulary": 100}, {"alpha": -0.1},
        {"seed": -1}, {"chunk_rows": 1_000_001}, {"categorical": 0, "layout": "parquet"},
    ],
)  # fmt: skip
def test_wrong_specs_are_named_with_a_way_out(wrong: dict[str, object]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=rf"^{name}: {value!r} .*; "):
        replace(CRITEO, **wrong)  # type: ignore[arg-type]
