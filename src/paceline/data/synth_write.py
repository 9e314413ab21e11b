"""Writes a synthetic log: one file per day, and truth.json with the best AUC and log loss that anyone could reach.

Chunks are generated, scored and encoded on a few threads and written in order by the caller's. A day is written under a
temporary name and renamed when it is whole. The known best is accumulated from the very probabilities that the labels
were drawn with; they are never written, so nothing in the log leaks them.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from isal import igzip
from numpy.typing import NDArray

from paceline.data.synth import Chunk, SynthSpec, Truth, chunk_plan, truth_of
from paceline.errors import UserError
from paceline.kernels import synth as kernel

TRUTH_FILE = "truth.json"

_MAX_THREADS = 3  # each holds a chunk, and writing keeps up with about three
_DAY_FILE = re.compile(r"day_\d+\.(tsv|tsv\.gz|tsv\.zst|parquet)")
_SUFFIX = {"gz": "tsv.gz", "zst": "tsv.zst", "none": "tsv"}
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownBest:
    """What the true probabilities score on rows of the log; no model can be expected to do better.

    Attributes:
        rows, clicks: counts; click_rate: their ratio.
        best_auc: 0..1, with probabilities in 2^16 bins; None if there are only clicks or none.
        best_logloss: mean, in nats.
    """

    rows: int
    clicks: int
    click_rate: float
    best_auc: float | None
    best_logloss: float


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What was written: the file and the known best of every day, and of all days together."""

    spec: SynthSpec
    files: tuple[Path, ...]
    days: tuple[KnownBest, ...]
    total: KnownBest

    def as_json(self) -> dict[str, Any]:
        """The content of truth.json."""
        days = [
            {"day": day, "file": file.name, **asdict(best)}
            for day, (file, best) in enumerate(zip(self.files, self.days, strict=True))
        ]
        return {"spec": asdict(self.spec), "days": days, "total": asdict(self.total)}


class BestScores:
    """Mergeable sums behind `KnownBest`. In integers: the order and the size of the pieces change nothing."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, kernel.BINS), np.int64)
        self._loss = 0

    def add(self, probability: NDArray[np.float64], label: NDArray[np.int8]) -> None:
        """Counts rows: true probability [n] and drawn label [n]."""
        self._loss += int(kernel.count_scores(probability, label, self._counts))

    def merge(self, other: BestScores) -> None:
        """Takes in the rows of another."""
        self._counts += other._counts
        self._loss += other._loss

    def best(self) -> KnownBest:
        """The scores so far; at least one row must have been added."""
        negative, positive = self._counts
        clicks, rows = int(positive.sum()), int(self._counts.sum())
        pairs = clicks * (rows - clicks)
        # A pair within one bin counts half, as a tie does.
        below = np.cumsum(negative) - negative / 2
        auc = float(positive @ below) / pairs if pairs else None
        return KnownBest(rows, clicks, clicks / rows, auc, self._loss / kernel.LOSS_UNIT / rows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk on its way to the file: encoded as text [bytes] or as a table."""

    day: int
    rows: int
    scores: BestScores
    content: Any


def write_log(
    spec: SynthSpec, out: Path, progress: Callable[[int], None] | None = None, *, overwrite: bool = False
) -> SynthReport:
    """Generates the log of a spec into a directory: day_0.tsv.gz .. (or .parquet) and truth.json.

    Args:
        spec: what to generate. Equal specs give equal values; the text's bytes do not depend on `chunk_rows` either.
        out: directory, made if need be.
        progress: called with the number of rows written since its last call.
        overwrite: remove the day files and truth.json that are there already. Other files are never touched.

    Raises:
        UserError: `out` is a file, or holds a log and `overwrite` is not set.
        OSError: the disk is full or not writable. No half file is left; days that were finished stay.
    """
    _clear(out, overwrite)
    threads = max(1, min(_MAX_THREADS, os.cpu_count() or 1))
    days: list[KnownBest] = []
    files: list[Path] = []
    everything = BestScores()
    with ThreadPoolExecutor(threads, thread_name_prefix="paceline-synth") as pool:
        pieces = _in_order(pool, partial(_piece, truth_of(spec)), chunk_plan(spec), ahead=threads)
        for day, of_day in groupby(pieces, key=lambda piece: piece.day):
            suffix = _SUFFIX[spec.compression] if spec.layout == "criteo" else "parquet"
            files.append(out / f"day_{day}.{suffix}")
            scores = BestScores()
            with _whole(files[-1]) as temporary, _writer(spec, temporary) as write:
                for piece in of_day:
                    write(piece.content)
                    scores.merge(piece.scores)
                    if progress is not None:
                        progress(piece.rows)
            days.append(scores.best())
            everything.merge(scores)
    report = SynthReport(spec, tuple(files), tuple(days), everything.best())
    with _whole(out / TRUTH_FILE) as temporary:
        temporary.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return report


def _clear(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, and a log needs a directory; name another one")
    out.mkdir(parents=True, exist_ok=True)
    # Days beyond those of the new log go too: left behind, they would be read as part of it.
    old = sorted(p for p in out.iterdir() if p.name == TRUTH_FILE or _DAY_FILE.fullmatch(p.name))
    if old and not overwrite:
        raise UserError(f"{out}: holds a log already ({old[0].name}); name another directory, or use --overwrite")
    for path in old:
        path.unlink()


def _in_order(
    pool: ThreadPoolExecutor,
    make: Callable[[tuple[int, int, int]], _Piece],
    plan: Iterable[tuple[int, int, int]],
    ahead: int,
) -> Iterator[_Piece]:
    """The pieces in the plan's order, with at most `ahead` of them made or being made beyond the one handed out."""
    pending: deque[Future[_Piece]] = deque()
    try:
        for place in plan:
            pending.append(pool.submit(make, place))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _piece(truth: Truth, place: tuple[int, int, int]) -> _Piece:
    chunk = truth.chunk(*place)
    scores = BestScores()
    scores.add(chunk.probability, chunk.label)
    content = _text(chunk) if truth.spec.layout == "criteo" else _table(truth.spec, chunk)
    return _Piece(chunk.day, len(chunk), scores, content)


def _text(chunk: Chunk) -> NDArray[np.uint8]:
    text = np.empty(len(chunk) * kernel.MAX_LINE, np.uint8)  # only the pages that are filled cost memory
    size = kernel.criteo_text(
        chunk.label, chunk.numeric.T, chunk.numeric_missing.T, chunk.categorical.T, chunk.categorical_missing.T,
        0, len(chunk), text,
    )  # fmt: skip
    return text[:size]


def parquet_schema(spec: SynthSpec) -> Any:
    """The pyarrow schema of the parquet layout: click, i1.., c1.., m1.., user."""
    fields = [pa.field("click", pa.int8(), nullable=False)]
    fields += [pa.field(f"i{f + 1}", pa.int32()) for f in range(spec.numeric)]
    fields += [pa.field(f"c{f + 1}", pa.int64()) for f in range(spec.categorical)]
    fields += [pa.field(f"m{f + 1}", pa.list_(pa.int64())) for f in range(spec.multi)]
    return pa.schema([*fields, pa.field("user", pa.int64(), nullable=False)])


def _table(spec: SynthSpec, chunk: Chunk) -> Any:
    def nullable(values: NDArray[Any], missing: NDArray[np.bool_], kind: Any) -> Any:
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little"))
        return pa.Array.from_buffers(kind, len(chunk), [valid, pa.py_buffer(values)])

    columns = [pa.array(chunk.label)]
    columns += [nullable(chunk.numeric[:, f], chunk.numeric_missing[:, f], pa.int32()) for f in range(spec.numeric)]
    columns += [
        nullable(chunk.categorical[:, f], chunk.categorical_missing[:, f], pa.int64()) for f in range(spec.categorical)
    ]
    columns += [pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)) for offsets, ids in chunk.bags]
    columns.append(pa.array(chunk.categorical[:, spec.user_field]))
    return pa.Table.from_arrays(columns, schema=parquet_schema(spec))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if the block succeeds and is removed if it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _writer(spec: SynthSpec, path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends a piece's content to a new file. The file is closed with the block."""
    with ExitStack() as stack:
        if spec.layout == "parquet":
            table_sink = stack.enter_context(pq.ParquetWriter(path, parquet_schema(spec), compression="zstd"))
            yield lambda table: table_sink.write_table(table, row_group_size=len(table))
            return
        sink: Any = stack.enter_context(path.open("wb"))
        if spec.compression == "gz":
            # No name and no time in the header: the same spec gives the same bytes.
            gzip: Any = igzip.IGzipFile  # isal's own annotations leave it untyped
            sink = stack.enter_context(gzip("", "wb", compresslevel=1, fileobj=sink, mtime=0))
        elif spec.compression == "zst":
            sink = stack.enter_context(zstandard.ZstdCompressor(level=1).stream_writer(sink))
        blocks = _Blocks(sink.write)
        yield blocks.write
        blocks.finish()


class _Blocks:
    """Cuts a stream into blocks of one size: igzip's bytes depend on how its input was cut, and chunks must not."""

    def __init__(self, sink: Callable[[memoryview], Any]) -> None:
        self._sink = sink
        self._rest = bytearray()

    def write(self, text: NDArray[np.uint8]) -> None:
        view = text.data
        if self._rest:
            missing = _BLOCK - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) < _BLOCK:
                return
            self._sink(memoryview(self._rest))
            self._rest = bytearray()
        whole = len(view) - len(view) % _BLOCK
        for start in range(0, whole, _BLOCK):
            self._sink(view[start : start + _BLOCK])
        self._rest += view[whole:]

    def finish(self) -> None:
        if self._rest:
            self._sink(memoryview(self._rest))
