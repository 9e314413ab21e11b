"""What goes wrong for a user: one clear message, the right exit code, and nothing that was trained is lost."""

import gzip
import importlib
import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

import paceline
from paceline.data.text import Dialect, read_delimited
from paceline.errors import ConfigError, DataError, LossError, PacelineError, RunDirError, StorageError, UserError
from paceline.evaluate import evaluate_run, predict_run
from paceline.inspect import inspect_data, inspect_run
from paceline.rundir import RunDir
from paceline.training import Silent, train

HEADER = "click,a,b,c,g,user"
FEATURES = {"label": "click", "numeric": ["a", {"column": "b", "transform": "standardise"}], "categorical": ["c"]}
FEATURES |= {"multi": [{"column": "g"}], "group": "user"}
SHORT = {"label": "click", "categorical": ["c"]}


def csv(rows, seed=0):
    return [HEADER] + [f"{(i * 7 + seed) % 3 % 2},{i % 9},{i * 0.5},c{i % 7},x|y{i % 3},u{i % 4}" for i in range(rows)]


def criteo(rows, seed=0):
    numbers, ids = "\t".join(["3"] * 13), "\t".join(["ab12cd34"] * 25)
    return [f"{(i + seed) % 3 % 2}\t{numbers}\t{i % 11:08x}\t{ids}" for i in range(rows)]


def libsvm(rows, seed=0):
    return [f"{(i + seed) % 3 % 2} {i % 7 + 1}:1 {i % 11 + 20}:0.5" for i in range(rows)]


ROWS = {"csv": csv, "criteo": criteo, "libsvm": libsvm}


def job(kind, days, skip=False, **changes):
    rates = {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.001}}
    data = {"format": kind, "days": days, "on_bad_row": "skip" if skip else "error"}
    values = {"data": data, "model": {"name": "deepfm", "dim": 4, "hidden": [8]}, "optimizer": rates, "pace": "sync"}
    values |= {"batch": {"global": 64, "local": 16}, "workers": 2}
    return values | ({"features": FEATURES} if kind == "csv" else {}) | changes


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode())


def go(folder, values, resume=False, overrides=(), watcher=None):
    (folder / "job.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return train(paceline.load_config(folder / "job.yaml", list(overrides)), folder, folder / "run", resume, watcher)


def fails(kind, *words, call):
    """`call` raises `kind` with its exit code and a message that holds every word."""
    with pytest.raises(PacelineError) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, kind), f"{type(caught.value).__name__}: {text}"
    assert caught.value.exit_code == (2 if issubclass(kind, UserError) else 1)
    assert [word for word in words if str(word) not in text] == [], text
    return text


def skipped(folder):
    lines = map(json.loads, (folder / "run" / "skipped_rows.jsonl").read_text().splitlines())
    return sorted((Path(line["file"]).name, line["line"]) for line in lines)


def test_public_train_is_the_function_whatever_was_imported():
    importlib.import_module("paceline.training")
    assert paceline.train is train


TEXT = yaml.safe_dump(job("csv", ["d.csv"]), sort_keys=False)
JOBS = [
    (None, ["no such file"]),
    (b"data:\n\tformat: csv\n", ["line 2"]),
    (f"{TEXT}modle: x\n".encode(), [f"line {TEXT.count(chr(10)) + 1}", "modle", "did you mean 'model'"]),
    (f"{TEXT}1: x\n".encode(), [f"line {TEXT.count(chr(10)) + 1}"]),
    (f"{TEXT}workers: 7\n".encode(), ["workers", "twice"]),
    (b"data: {format: criteo, days: [x]}\nfeatures: {label: y, categorical: [c]}\n", ["features", "leave"]),
]


@pytest.mark.parametrize(("text", "words"), JOBS, ids=range(len(JOBS)))
def test_job_file(tmp_path, text, words):
    if text is not None:
        (tmp_path / "job.yaml").write_bytes(text)
    fails(ConfigError, tmp_path / "job.yaml", *words, call=lambda: paceline.load_config(tmp_path / "job.yaml"))


IMPOSSIBLE = """
workers=0                                       workers 1
batch.globl=3                                   batch.globl 'global'
batch.global=100                                batch.global multiple
data.days=[[]]                                  days
data.days.0.x=1                                 data.days.0
data.days=foo://x                               data.days foo://x
data.days=nothing.csv                           nothing.csv exist
data.days=[.]                                   directory
data.delimiter='"'                              delimiter quote
model.dim=true                                  model.dim
model.std=abc                                   model.std
model.std=.nan                                  model.std
model.name=':X'                                 model.name
optimizer.sparse.lr=1e39                        optimizer.sparse.lr
optimizer.dense.lr=.inf                         optimizer.dense lr
features.label={"column":"a","positive":">=4.4.4"}  features.label.positive 4.4.4 such
features.categorical=[c,c]                      'c' twice
features={"label":"click"}                      ids
"""


@pytest.mark.parametrize("case", IMPOSSIBLE.strip().splitlines(), ids=lambda case: case.split()[0])
def test_impossible_values(tmp_path, case):
    override, *words = case.split()
    write(tmp_path / "d.csv", csv(32))
    fails(UserError, *words, call=lambda: go(tmp_path, job("csv", ["d.csv"]), overrides=[override]))


def test_overrides_of_a_key_in_its_short_form(tmp_path):
    (tmp_path / "job.yaml").write_text(TEXT)  # label: click; numeric: [a, ...]
    overrides = ["features.label.positive='>= 4'", "features.numeric.0.column=z"]
    features = paceline.load_config(tmp_path / "job.yaml", overrides).features
    assert (features.label.column, features.label.positive, features.numeric[0].column) == ("click", ">= 4", "z")


def damaged(kind):
    good = "".join(line + "\n" for line in ROWS[kind](300)).encode()
    packed, frame = gzip.compress(good), zstandard.ZstdCompressor(write_checksum=True).compress(good)
    plain = {"empty": b"", "blank": b"\n\r\n\n", "binary": bytes(range(256)) * 9, "parquet": b"PAR1xxxx"}
    half = {"half.gz": packed[: len(packed) // 2], "half.zst": frame[: len(frame) // 2], "end.gz": packed[:-4]}
    wrong = {"text.gz": good, "text.zst": good, "none.gz": gzip.compress(b""), "utf16": good.decode().encode("utf-16")}
    flipped = {f"flip.{end}": x[:40] + b"\0\0\0\0" + x[44:] for end, x in (("gz", packed), ("zst", frame))}
    return plain | half | wrong | flipped


@pytest.mark.parametrize("day", [0, 1], ids=["trained", "evaluated"])
@pytest.mark.parametrize("name", list(damaged("csv")))
@pytest.mark.parametrize("kind", list(ROWS))
def test_damaged_files(tmp_path, kind, name, day):
    write(tmp_path / "good", [*ROWS[kind](40), "", ""], "\r\n")
    (tmp_path / name).write_bytes(damaged(kind)[name])
    fails(DataError, tmp_path / name, call=lambda: go(tmp_path, job(kind, ["good", name] if day else [name])))


@pytest.mark.parametrize("cut", [0, 4, 300, -1, None])
def test_damaged_parquet(tmp_path, cut):
    table = pa.table({"click": [0, 1] * 50, "c": ["x"] * 100})
    pq.write_table(table.slice(0, 0) if cut is None else table, tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:cut])
    fails(DataError, tmp_path / "x", call=lambda: go(tmp_path, job("parquet", ["x"], features=SHORT)))
    fails(DataError, tmp_path / "x", call=lambda: inspect_data(str(tmp_path / "x")))


@pytest.mark.parametrize(("header", "word"), [("click,a,b,c,g,user,a", "twice"), ("click,a,b,c,g,usr", "'usr'")])
def test_headers(tmp_path, header, word):
    write(tmp_path / "d", [header, ",".join("1" * (header.count(",") + 1))])
    fails(DataError, tmp_path / "d", word, call=lambda: go(tmp_path, job("csv", ["d"])))


def test_byte_order_mark_and_quotes(tmp_path):
    header = ",".join(f'"{name}"' for name in HEADER.split(","))
    write(tmp_path / "d", ["\ufeff" + header, '1,2,0.5,"a ""b""\nc, d",x|y,u', "0,1,1,c,x,v", "0,nan,1,c,x,v"])
    fails(DataError, "d, line 5", "'a'", "nan", call=lambda: go(tmp_path, job("csv", ["d"])))


def test_a_quoted_cell_is_read_the_same_at_the_end_of_a_block(tmp_path):
    write(tmp_path / "d", ["click,c,fill", *(f'1,"q ""{i}"" end",{"z" * 3000}' for i in range(2000))])
    chunks = list(read_delimited(str(tmp_path / "d"), 0, Dialect(",", '"'), ("click", "c")))
    assert len(chunks) > 1
    texts = [text for chunk in chunks for text in map(chunk.texts("c").text, range(chunk.rows))]
    assert texts == [f'q "{i}" end' for i in range(2000)]
    assert [line for chunk in chunks for line in map(chunk.line, range(chunk.rows))] == list(range(2, 2002))


def test_reading_a_header_needs_little_memory(tmp_path):
    write(tmp_path / "d", ["click,c", *["1," + "c" * 98] * 50_000])
    tracemalloc.start()
    try:
        next(read_delimited(str(tmp_path / "d"), 0, Dialect(",", '"'), ("click", "c")))
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


BAD_ROWS = [
    ("csv", "2,2,0.5,c,x,u", ["click", "2", "positive"]),
    ("csv", "1,inf,0.5,c,x,u", ["'a'", "inf"]),
    ("csv", "1,1,1e400,c,x,u", ["'b'", "1e400"]),
    ("csv", "1,1,1e300,c,x,u", ["'b'", "1e300"]),  # infinite as the float32 that a model sees
    ("csv", "1,foo,1,c,x,u", ["'a'", "foo", "categorical"]),
    ("criteo", "1\t2", ["2 columns", "40"]),
    ("criteo", "3" + criteo(1)[0][1:], ["label", "3"]),
    ("libsvm", f"1 {2**63}:1", ["2^63"]),
    ("libsvm", "1 3:nan", ["finite"]),
    ("libsvm", "1 3:1e39", ["finite"]),  # as above
    ("libsvm", "1 3", ["index:value"]),
    ("libsvm", "1", ["no features"]),
    ("libsvm", "2 1:1", ["label", "2"]),
]


@pytest.mark.parametrize(("kind", "row", "words"), BAD_ROWS, ids=[f"{k}-{r[:20]!r}" for k, r, _ in BAD_ROWS])
def test_bad_rows(tmp_path, kind, row, words):
    lines = ROWS[kind](90)
    write(tmp_path / "d", [*lines[:71], row, *lines[71:]])
    words = [f"{tmp_path / 'd'}, line 72", "on_bad_row: skip", *words]
    text = fails(DataError, *words, call=lambda: go(tmp_path, job(kind, ["d"])))
    assert kind == "csv" or "features." not in text  # these formats cannot have features
    result = go(tmp_path, job(kind, ["d"], skip=True), resume=True)
    assert (result["rows_skipped"], result["samples_read"], skipped(tmp_path)) == (1, 90, [("d", 72)])


@pytest.mark.parametrize("bad", [None, float("nan"), -1.0, "yes", "dictionary"], ids=str)
def test_bad_rows_of_parquet(tmp_path, bad):
    column = pa.array([bad if i == 5 else str(i % 2) if isinstance(bad, str) else float(i % 2) for i in range(40)])
    column = column.dictionary_encode() if bad == "dictionary" else column
    name = "click" if bad in (None, -1.0) else "a"
    pq.write_table(pa.table({"click": [0, 1] * 20, "a": [0] * 40, "c": ["x"] * 40} | {name: column}), tmp_path / "d")
    values = job("parquet", ["d"], features={**SHORT, "numeric": ["a"]})
    fails(DataError, tmp_path / "d", " 6: ", f"'{name}'", call=lambda: go(tmp_path, values))
    values["data"]["on_bad_row"] = "skip"
    result = go(tmp_path, values, resume=True)
    assert (result["rows_skipped"], result["samples_read"], skipped(tmp_path)) == (1, 39, [("d", 6)])


def test_huge_ids_stay_apart(tmp_path):
    big = [2**53 + i for i in range(12)] + [2**63 - 6 + i for i in range(12)] + [2**64 - 1 - i for i in range(12)]
    unsigned, text = pa.array(np.array(big, np.uint64)), pa.array([str(10**40 + i) for i in range(36)])
    for number, ids in enumerate((unsigned, unsigned.dictionary_encode(), text)):
        pq.write_table(pa.table({"click": [i % 2 for i in range(36)], "c": ids}), tmp_path / "d")
        write(tmp_path / "e", ["click,c", *(f"{i % 2},{value}" for i, value in enumerate(ids.to_pylist()))])
        for kind, name in (("parquet", "d"), ("csv", "e")):
            (tmp_path / f"{kind}{number}").mkdir()
            assert go(tmp_path / f"{kind}{number}", job(kind, [f"../{name}"], features=SHORT))["ids"] == 36
    write(tmp_path / "f", [f"{i % 2} {2**63 - 1 - i}:1" for i in range(36)])
    assert go(tmp_path, job("libsvm", ["f"]))["ids"] == 36


@pytest.mark.parametrize("day", [0, 1])
def test_a_day_of_one_class(tmp_path, day):
    write(tmp_path / f"d{1 - day}", csv(60))
    write(tmp_path / f"d{day}", [HEADER, *("1" + row[1:] for row in csv(60)[1:])])
    values = job("csv", ["d0", "d1"])
    for resume in (False, True):  # it does not go away by asking again
        fails(DataError, tmp_path / f"d{day}", "evaluate: none", call=lambda r=resume: go(tmp_path, values, resume=r))
    assert go(tmp_path, {**values, "evaluate": "none"}, resume=True)["samples_read"] == 120


@pytest.mark.parametrize("pace", ["sync", "gba", "bulk_synchronous", "bounded_staleness", "async"])
def test_rows_are_read_once_however_often_a_run_stops(tmp_path, pace):
    """Stop at a bad row with batches under way, stop again before any of them is read again, then finish."""
    rows = csv(200)
    write(tmp_path / "d0", csv(50))
    write(tmp_path / "d1", [*rows[:130], "junk", *rows[130:], "trailing,junk"])
    whole = (tmp_path / "d1").read_bytes()
    values = job("csv", ["d0", "d1"], pace=pace, evaluate="none")
    fails(DataError, tmp_path / "d1, line 131", "--resume", call=lambda: go(tmp_path, values))
    values["data"]["on_bad_row"] = "skip"
    for harm in (b"other,header\n" + whole, b"\0", b""):
        (tmp_path / "d1").write_bytes(harm)
        fails(DataError, tmp_path / "d1", call=lambda: go(tmp_path, values, resume=True))
    (tmp_path / "d1").write_bytes(whole)
    result = go(tmp_path, values, resume=True)
    assert (result["samples_read"], result["rows_skipped"], skipped(tmp_path)) == (250, 2, [("d1", 131), ("d1", 203)])


def test_skipped_rows_and_metrics_are_not_counted_twice(tmp_path):
    class Stop(Silent):
        def line(self, line):
            raise KeyboardInterrupt

    for day in ("d0", "d1"):
        write(tmp_path / day, [HEADER, "junk", *csv(60)[1:], "junk,1"])
    values = job("csv", ["d0", "d1"], skip=True)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, values, resume=resume, watcher=Stop())
    result = go(tmp_path, values, resume=True)
    assert (result["samples_read"], result["rows_skipped"]) == (120, 4)
    assert skipped(tmp_path) == [("d0", 2), ("d0", 63), ("d1", 2), ("d1", 63)]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("part", ["sparse", "dense"])
def test_a_loss_that_is_nan(tmp_path, part):
    """Good updates stay, and a lower rate gets the run through: it does not go on from an exploded state."""
    write(tmp_path / "d0", csv(64))
    write(tmp_path / "d1", csv(640, 1))
    tame = {"sparse": {"name": "sgd", "lr": 0.01}, "dense": {"name": "sgd", "lr": 0.01}}
    wild = job("csv", ["d0", "d1"], optimizer={**tame, part: {"name": "sgd", "lr": 3e38}}, checkpoint={"every": 1})
    go(tmp_path, job("csv", ["d0"], optimizer=tame))
    fails(LossError, "lr", "--resume", call=lambda: go(tmp_path, wild, resume=True))
    assert (tmp_path / "run" / "checkpoints" / "000000001").exists()
    assert go(tmp_path, {**wild, "optimizer": tame}, resume=True)["samples_read"] == 704


@pytest.mark.parametrize("part", ["sparse", "dense"])
def test_a_nan_that_an_evaluation_meets_first(tmp_path, part):
    write(tmp_path / "d", csv(64))  # one update
    rates = {name: {"name": "sgd", "lr": 3e38 if name == part else 0.01} for name in ("sparse", "dense")}
    fails(LossError, "lr", call=lambda: go(tmp_path, job("csv", ["d", "d"], optimizer=rates)))


def test_a_dense_rate_that_is_changed_at_a_resume_counts(tmp_path):
    write(tmp_path / "d", csv(64))
    go(tmp_path, job("csv", ["d"]))
    go(tmp_path, job("csv", ["d", "d"]), resume=True, overrides=["optimizer.dense.lr=0.5"])
    state = json.loads((max((tmp_path / "run" / "checkpoints").glob("[0-9]*")) / "state.json").read_text())
    assert state["dense_optimizer"]["param_groups"][0]["lr"] == 0.5


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "run").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path / "run")]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {told.stderr.strip()}")
    yield tmp_path / "run"
    subprocess.run(["umount", "-l", str(tmp_path / "run")], check=True)


@pytest.mark.parametrize("every", [10**6, 512])
def test_a_full_disk(small_disk, tmp_path, every):
    for day, rows in (("d0", 300), ("d1", 6000)):
        write(tmp_path / day, ["click,c", *(f"{i % 2},{day}-{i}" for i in range(rows))])
    values = job("csv", ["d0", "d1"], features=SHORT, checkpoint={"every": every}, batch={"global": 256})
    values["model"] = {"name": "fm", "dim": 16}
    fails(StorageError, small_disk, "disk is full", "--resume", call=lambda: go(tmp_path, values))
    before = sorted(path.name for path in (small_disk / "checkpoints").iterdir())
    assert "000000002" in before
    with suppress(OSError), open(small_disk / "fill", "wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    told = command("train", tmp_path / "job.yaml", "--run-dir", small_disk, "--resume")
    assert (told.returncode, "Traceback" in told.stderr, "disk is full" in told.stderr) == (1, False, True), told.stderr
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == before
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert go(tmp_path, values, resume=True)["samples_read"] == 6300


def test_run_directories(tmp_path):
    write(tmp_path / "d", csv(64))
    values, run, elsewhere = job("csv", ["d"]), tmp_path / "run", tmp_path / "typo"
    with RunDir(run):
        fails(RunDirError, run, "in use", os.getpid(), call=lambda: go(tmp_path, values))
    go(tmp_path, values)
    fails(RunDirError, run, "--resume", call=lambda: go(tmp_path, values))
    for change in ("model.dim=8", "seed=9", "optimizer.sparse.name=sgd"):
        key = change.rsplit(".", 1)[0].split("=")[0]
        fails(RunDirError, run, key, call=lambda c=change: go(tmp_path, values, resume=True, overrides=[c]))
    for call in (lambda: evaluate_run(tmp_path, ["d"]), lambda: predict_run(tmp_path, ["d"], tmp_path / "p")):
        fails(RunDirError, tmp_path, "run directory", call=call)
    config = paceline.load_config(tmp_path / "job.yaml")
    fails(PacelineError, tmp_path / "d", call=lambda: predict_run(run, [str(tmp_path / "d")], tmp_path / "d" / "p"))
    fails(RunDirError, tmp_path / "d", call=lambda: train(config, tmp_path, tmp_path / "d"))
    fails(RunDirError, elsewhere, call=lambda: train(config, tmp_path, elsewhere, resume=True))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "skipped_rows.jsonl", "manifest.json"])
def test_a_damaged_run_directory_is_told_or_passed_over(tmp_path, name):
    write(tmp_path / "d", csv(64))
    go(tmp_path, job("csv", ["d"]))
    path = next((tmp_path / "run").rglob(name), tmp_path / "run" / name)
    path.write_text({"config.yaml": "[1\n", "manifest.json": "[]\n"}.get(name, "nonsense\n"))
    for call in (lambda: inspect_run(tmp_path / "run"), lambda: go(tmp_path, job("csv", ["d"]), resume=True)):
        with suppress(PacelineError):  # but nothing else
            call()


def command(*words):
    line = [sys.executable, "-m", "paceline", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", ["workers=0 2 workers", "optimizer.dense.lr=1e30 1 loss", "data.days=no://x 2 no://x"])
def test_exit_codes(tmp_path, case):
    override, code, told = case.split()
    write(tmp_path / "d", csv(640))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job("csv", ["d"])))
    result = command("train", tmp_path / "job.yaml", "--run-dir", tmp_path / "run", override)
    found = (result.returncode, told in result.stderr, "Traceback" in result.stderr)
    assert found == (int(code), True, False), result.stderr
