"""The same rows in every format give the same batches; ids are what the documentation says."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from paceline.data.stream import Log, Plan, day_batches
from paceline.data.text import Dialect
from paceline.errors import DataError
from paceline.kernels.hashing import field_seed, missing_id, mix64, text_id
from paceline.schema import Label, Multi, Numeric, Schema, criteo_schema, libsvm_schema

SCHEMA = Schema(
    Label("click"),
    (Numeric("a"), Numeric("b", "standardise"), Numeric("c", "identity")),
    ("d", "e"),
    (Multi("g", "|"),),
    group="d",
)
ROWS = [
    # click, a, b, c, d, e, g
    (1, 3.0, 10.0, 0.5, 9007199254740993, "plain", [1, 2]),
    (0, None, 20.0, None, 2**63 - 1, "with, comma", [3]),
    (1, -7.5, None, 1.5, None, 'a "quoted" word', []),
    (0, 1e6, 40.0, -2.0, 5, "two\nlines", [1, 2, 3]),
    (0, 0.0, 30.0, 0.0, -4, "äöü", [7]),
]


def text(delimiter):
    def cell(value):
        if value is None:
            return ""
        if isinstance(value, list):
            return "|".join(map(str, value))
        told = str(value)
        if any(mark in told for mark in (delimiter, '"', "\n")):
            return '"' + told.replace('"', '""') + '"'
        return told

    lines = ["click,a,b,c,d,e,g".replace(",", delimiter)]
    lines += [delimiter.join(cell(v) for v in row) for row in ROWS]
    return ("\r\n".join(lines) + "\r\n").replace("\r\n", "\n" if delimiter == "\t" else "\r\n").encode()


def write(folder, kind):
    path = folder / f"rows.{kind}"
    match kind.split("."):
        case ["csv", *rest] | ["tsv", *rest]:
            data = text("," if kind.startswith("csv") else "\t").replace(b"two\r\nlines", b"two\nlines")
            if rest == ["gz"]:
                data = gzip.compress(data[:50]) + gzip.compress(data[50:])  # two members, as `cat a.gz b.gz` makes
            if rest == ["zst"]:
                pack = zstandard.ZstdCompressor().compress
                data = pack(data[:50]) + pack(data[50:])
            path.write_bytes(data)
        case ["parquet"]:
            columns = list(zip(*ROWS, strict=True))
            types = [pa.int8(), pa.float64(), pa.float32(), pa.float64(), pa.int64(), pa.string(), pa.list_(pa.int64())]
            names = ["click", "a", "b", "c", "d", "e", "g"]
            arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
            pq.write_table(pa.table(arrays, names=names), path, row_group_size=2)
    return str(path)


def log_of(kind):
    if kind == "parquet":
        return Log("parquet", SCHEMA, None)
    delimiter = "," if kind.startswith("csv") else "\t"
    return Log(kind[:3], SCHEMA, Dialect(delimiter, '"', None))


KINDS = ["csv", "tsv", "parquet", "csv.gz", "csv.zst", "tsv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_batch(tmp_path, kind):
    [batch] = day_batches(log_of(kind), [write(tmp_path, kind)], Plan(0, 10))
    [expected] = day_batches(log_of("csv"), [write(tmp_path, "csv")], Plan(0, 10))
    np.testing.assert_array_equal(batch.labels, [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(batch.ids, expected.ids)
    np.testing.assert_array_equal(batch.groups, expected.groups)
    np.testing.assert_allclose(batch.dense, expected.dense, rtol=1e-6)
    np.testing.assert_array_equal(batch.bags[0].ids, expected.bags[0].ids)
    np.testing.assert_array_equal(batch.bags[0].offsets, expected.bags[0].offsets)


def signed(unsigned):
    return int(np.array([unsigned], np.uint64).view(np.int64)[0])


def test_ids_are_what_the_documentation_says(tmp_path):
    """id = XXH64(text, seed = XXH64(field name)); checked against the xxhash package, and against fixed numbers."""
    [batch] = day_batches(log_of("csv"), [write(tmp_path, "csv")], Plan(0, 10))
    seed = xxhash.xxh64(b"d", seed=0).intdigest()
    expected = [
        xxhash.xxh64(t, seed=seed).intdigest() for t in (b"9007199254740993", b"9223372036854775807", b"", b"5")
    ]
    assert batch.ids[:4, 1].tolist() == [signed(e) for e in expected]
    assert batch.ids[2, 1] == missing_id("d")
    seed = xxhash.xxh64(b"e", seed=0).intdigest()
    told = ["plain", "with, comma", 'a "quoted" word', "two\nlines", "äöü"]
    assert batch.ids[:, 2].tolist() == [signed(xxhash.xxh64(t.encode(), seed=seed).intdigest()) for t in told]
    bag = batch.bags[0]
    assert bag.offsets.tolist() == [0, 2, 3, 4, 7, 8]
    assert bag.ids[3] == missing_id("g")
    np.testing.assert_allclose(bag.weights[:2], 0.5)
    # These numbers may never change: they are in people's checkpoints.
    assert text_id(b"value", int(field_seed("field"))) == 18375115714349806920
    assert missing_id("field") == -3092366634609640222
    assert int(mix64(np.uint64(1))) == 6238072747940578789


@pytest.mark.parametrize("length", [*range(40), 63, 64, 65, 200])
def test_xxh64_is_the_published_one(length):
    data = bytes(range(256))[:length]
    for seed in (0, 1, 2**64 - 1):
        assert text_id(data, seed) == xxhash.xxh64(data, seed=seed).intdigest()


def test_numbers_are_standardised_as_they_are_read(tmp_path):
    path = write(tmp_path, "csv")
    batches = list(day_batches(log_of("csv"), [path], Plan(0, 2)))
    seen = [10.0, 20.0]
    assert batches[0].dense[0, 0] == pytest.approx((10 - 15) / np.std(seen))
    seen += [40.0]
    assert batches[1].dense[1, 0] == pytest.approx((40 - np.mean(seen)) / np.std(seen), rel=1e-6)
    assert batches[1].dense[0, 0] == 0.0
    assert batches[1].dense[0, 1] == 1.0
    moments = batches[-1].following.moments
    np.testing.assert_allclose(moments[:, 0], [4, 25, np.var([10, 20, 40, 30]) * 4])
    [frozen] = day_batches(log_of("csv"), [path], Plan(0, 10, moments=moments, frozen=True))
    assert frozen.dense[0, 0] == pytest.approx((10 - 25) / np.std([10, 20, 40, 30]))
    assert batches[0].dense[1, 2:].tolist() == [0.0, 1.0]
    assert batches[0].dense[0, 2:].tolist() == [0.5, 0.0]


def test_log_buckets():
    from paceline.kernels.hashing import log_bucket

    assert [log_bucket(float(x)) for x in (0, 1, 2, -1)] == [0, 4, 8, -4]
    assert log_bucket(10.0) == 100 + int(np.log(10.0) ** 2)
    assert log_bucket(-10.0) == -100 - int(np.log(10.0) ** 2)
    assert log_bucket(1e300) == 100 + int(np.log(1e300) ** 2)


def test_libsvm(tmp_path):
    path = tmp_path / "rows.svm"
    path.write_text("1 3:0.5 17:1 # a comment\n-1 qid:4 9223372036854775807:2\n0 1:1e-3\n")
    [batch] = day_batches(Log("libsvm", libsvm_schema(), None), [str(path)], Plan(0, 10))
    assert batch.labels.tolist() == [1, 0, 0]
    bag = batch.bags[0]
    assert bag.offsets.tolist() == [0, 2, 3, 4]
    np.testing.assert_allclose(bag.weights, [0.5, 1, 2, 1e-3])
    seed = xxhash.xxh64(b"features", seed=0).intdigest()
    assert bag.ids[2] == signed(xxhash.xxh64(b"9223372036854775807", seed=seed).intdigest())


def criteo_rows(rows, start=0):
    lines = []
    for i in range(start, start + rows):
        numbers = [str(i % 7) if i % 3 else "" for _ in range(13)]
        lines.append("\t".join([str(i % 2), *numbers, *[f"{i * 31 + c:08x}" for c in range(26)]]))
    return "\n".join(lines) + "\n"


def test_batches_do_not_depend_on_how_the_file_is_cut(tmp_path, monkeypatch):
    from paceline.data import files

    path = tmp_path / "day_0.tsv"
    path.write_text(criteo_rows(500))
    log = Log("criteo", criteo_schema(), Dialect("\t", None, ("label", *criteo_schema().columns[1:])))
    whole = list(day_batches(log, [str(path)], Plan(0, 64)))
    original = files.blocks
    for size in (301, 1000, 7777):
        monkeypatch.setattr("paceline.data.text.blocks", lambda p, size=size: original(p, size))
        pieces = list(day_batches(log, [str(path)], Plan(0, 64)))
        assert [b.span.start for b in pieces] == [b.span.start for b in whole]
        for a, b in zip(pieces, whole, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)


def test_reading_goes_on_at_any_cursor_and_reads_spans_again(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"part_{i}.tsv")
        bad = "not a row\n" if i == 1 else ""
        paths[-1].write_text(bad + criteo_rows(97, start=97 * i) + bad)
    files = [str(p) for p in paths]
    log = Log("criteo", criteo_schema(), Dialect("\t", None, ("label", *criteo_schema().columns[1:])), True)
    whole = list(day_batches(log, files, Plan(0, 10)))
    assert sum(b.samples for b in whole) == 291
    assert sum(len(b.skipped) for b in whole) == 2
    for cut in (1, 9, 10, 19, 28, 29):
        for missing in ((), (0,), (cut - 1,), (0, cut - 1) if cut > 1 else (0,)):
            again = tuple(whole[i].span for i in missing)
            plan = Plan(0, 10, whole[cut - 1].following.start, again=again)
            got = list(day_batches(log, files, plan))
            expected = [*(whole[i] for i in missing), *whole[cut:]]
            assert [b.span.start for b in got] == [b.span.start for b in expected]
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a.ids, b.ids)
                assert a.skipped == b.skipped


def test_a_bad_row_names_file_line_and_reason(tmp_path):
    path = tmp_path / "day.tsv"
    path.write_text(criteo_rows(20) + "1\t2\t3\n" + criteo_rows(3))
    log = Log("criteo", criteo_schema(), Dialect("\t", None, ("label", *criteo_schema().columns[1:])))
    with pytest.raises(DataError, match=r"day\.tsv, line 21: 3 columns where 40 are expected.*on_bad_row: skip"):
        list(day_batches(log, [str(path)], Plan(0, 8)))


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_whole_numbers_in_parquet_have_the_ids_of_their_decimals(tmp_path, kind):
    """Without being written out as text first (all but uint64)."""
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    values = [least, most, None, 0, 7, 10, 99, 100, most // 2, None, least // 2]
    table = {"click": [0, 1] * 5 + [0], "d": pa.array(values, kind)}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    schema = Schema(Label("click"), (), ("d",), (), group="d")
    (batch,) = day_batches(Log("parquet", schema, None), [str(tmp_path / "rows.parquet")], Plan(0, 64))
    expected = [signed(text_id(b"" if v is None else str(v).encode(), int(field_seed("d")))) for v in values]
    assert batch.ids[:, 0].tolist() == batch.groups.tolist() == expected
