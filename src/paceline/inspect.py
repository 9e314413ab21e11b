"""What is in a file or a run, and which schema would fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paceline import checkpoint
from paceline.data.chunks import Spans
from paceline.data.files import blocks, expand, open_raw
from paceline.data.parquet import open_parquet
from paceline.data.text import first_row, split_file
from paceline.errors import DataError, RunDirError
from paceline.rundir import CONFIG, read_metrics
from paceline.schema import CRITEO_COLUMNS

SAMPLE = 20_000
_LABELS = ("label", "click", "clicked", "is_click", "y", "target", "rating", "conversion")
_IDS = ("item", "video", "movie", "product", "ad", "campaign", "site", "category", "brand", "device")
_GROUPS = ("user", "user_id", "uid", "session", "session_id")


@dataclass(slots=True)
class Column:
    """What was seen of a column in the sample."""

    name: str
    kind: str  # label | number | category | bag | time
    distinct: int
    missing: int
    examples: list[str]


@dataclass(slots=True)
class Findings:
    """What a file holds. suggestion: the data and features parts of a job.yaml."""

    path: str
    format: str
    rows: int
    whole: bool
    columns: list[Column] = field(default_factory=list)
    suggestion: dict[str, Any] = field(default_factory=dict)

    def yaml(self) -> str:
        return yaml.safe_dump(self.suggestion, sort_keys=False)


def inspect_data(pattern: str) -> Findings:
    """Look at the first rows of a file. Raises DataError if it is no log that paceline reads."""
    path = expand(pattern, Path.cwd())[0]
    with open_raw(path) as raw:
        parquet = raw.read(4) == b"PAR1"
    if parquet:
        return _parquet(path)
    first = next(blocks(path), b"")
    line = first.split(b"\n", 1)[0].rstrip(b"\r")
    if b"\0" in first[:4096]:
        raise DataError(f"{path}: a binary file; paceline reads Criteo, CSV, TSV, libsvm (also .gz, .zst) and Parquet")
    if line.count(b"\t") in (39, 38) and line.split(b"\t")[0] in (b"0", b"1"):
        names: tuple[str, ...] | None = CRITEO_COLUMNS
        return _text(path, "criteo", b"\t", names)
    cells = line.split()
    if len(cells) > 1 and all(c.count(b":") == 1 for c in cells[1:]):
        rows = sum(split.found.shape[0] for split in _head(path, b"\n", 1))
        return Findings(path, "libsvm", rows, False, [], {"data": {"format": "libsvm", "days": [path]}})
    delimiter = max((b"\t", b",", b";", b"|"), key=line.count)
    if not line.count(delimiter):
        raise DataError(f"{path}: no tabs, commas, semicolons or bars in its first line; which format is it?")
    return _text(path, "tsv" if delimiter == b"\t" else "csv", delimiter, None)


def _head(path: str, delimiter: bytes, columns: int, quote: int = -1) -> list[Any]:
    found, rows = [], 0
    for split in split_file(path, delimiter, quote, columns):
        found.append(split)
        rows += split.found.shape[0]
        if rows >= SAMPLE:
            break
    return found


def _text(path: str, kind: str, delimiter: bytes, names: tuple[str, ...] | None) -> Findings:
    quote = -1 if kind == "criteo" else ord('"')
    splits = _head(path, delimiter, len(names or first_row(path, delimiter, quote)), quote)
    if not splits:
        raise DataError(f"{path}: the file has no rows")
    first = splits[0]
    width = min(int(first.found[0]), first.starts.shape[1])
    skip = 0 if names else 1
    if names is None:
        names = tuple(Spans(first.buffer, first.starts[0], first.ends[0]).text(c) for c in range(width))
    values: dict[str, list[str]] = {name: [] for name in names}
    rows = 0
    for split in splits:
        spans = [Spans(split.buffer, split.starts[:, c], split.ends[:, c]) for c in range(len(names))]
        for row in range(skip, min(split.found.shape[0], SAMPLE)):
            if split.found[row] == len(names):
                for name, span in zip(names, spans, strict=True):
                    values[name].append(span.text(row))
                rows += 1
        skip = 0
    kinds = {"l": "label", "I": "number", "C": "category"} if kind == "criteo" else {}
    columns = [_column(name, texts, kinds.get(name[:1])) for name, texts in values.items()]
    data: dict[str, Any] = {"format": kind, "days": [path]}
    if kind == "csv" and delimiter != b",":
        data["delimiter"] = delimiter.decode()
    suggestion = {"data": data} if kind == "criteo" else {"data": data, "features": _features(columns)}
    return Findings(path, kind, rows, rows < SAMPLE, columns, suggestion)


def _parquet(path: str) -> Findings:
    with open_raw(path) as raw:
        source = open_parquet(raw, path)
        batch = next(source.iter_batches(SAMPLE))
        columns = []
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            texts = [
                "" if v is None else "|".join(map(str, v)) if isinstance(v, list) else str(v) for v in array.to_pylist()
            ]
            column = _column(name, texts)
            if str(array.type).startswith(("list", "large_list")):
                column.kind = "bag"
            columns.append(column)
        rows = source.metadata.num_rows
    suggestion = {"data": {"format": "parquet", "days": [path]}, "features": _features(columns)}
    return Findings(path, "parquet", rows, True, columns, suggestion)


def _column(name: str, texts: list[str], fixed: str | None = None) -> Column:
    present = [t for t in texts if t]
    distinct = len(set(present))
    values = {t.lower() for t in set(present)}
    low = name.lower()
    if fixed is not None:
        return Column(name, fixed, distinct, len(texts) - len(present), sorted(set(present))[:3])
    if (values <= {"0", "1"} and low in _LABELS) or (low in _LABELS and _is_numbers(present)):
        kind = "label"
    elif _share(present, "|") > 0.2:
        kind = "bag"
    elif "time" in low or "date" in low:
        kind = "time"
    elif low.endswith("id") or low in (*_GROUPS, *_IDS) or not _is_numbers(present) or _is_code(present, distinct):
        kind = "category"
    else:
        kind = "number"
    return Column(name, kind, distinct, len(texts) - len(present), sorted(set(present))[:3])


def _share(texts: list[str], mark: str) -> float:
    return sum(mark in t for t in texts) / len(texts) if texts else 0.0


def _is_code(texts: list[str], distinct: int) -> bool:
    """Few whole numbers are codes rather than amounts, and so are whole numbers beyond 32 bits."""
    return all("." not in t for t in texts) and (distinct <= 50 or any(len(t) > 9 for t in texts))


def _is_numbers(texts: list[str]) -> bool:
    try:
        for text in texts[:2000]:
            float(text)
    except ValueError:
        return False
    return bool(texts)


def _features(columns: list[Column]) -> dict[str, Any]:
    """A features part: the label first among likely names, then everything by kind; times are left out."""
    labels = [c for c in columns if c.kind == "label"]
    labels.sort(key=lambda c: _LABELS.index(c.name.lower()))
    chosen: dict[str, Any] = {"label": {"column": labels[0].name if labels else "FILL_IN"}}
    if labels and not set(labels[0].examples) <= {"0", "1"}:
        chosen["label"]["positive"] = ">= 4"
    rest = [c for c in columns if not labels or c.name != labels[0].name]
    chosen["numeric"] = [c.name for c in rest if c.kind == "number"]
    chosen["categorical"] = [c.name for c in rest if c.kind == "category"]
    chosen["multi"] = [{"column": c.name, "separator": "|"} for c in rest if c.kind == "bag"]
    group = next((c.name for c in rest if c.name.lower() in _GROUPS), None)
    if group:
        chosen["group"] = group
    return {key: value for key, value in chosen.items() if value}


@dataclass(frozen=True, slots=True)
class RunFindings:
    """What a run directory holds."""

    path: Path
    config: str
    lines: list[dict[str, Any]]
    checkpoint: Path | None
    ids: int
    state: dict[str, Any]


def inspect_run(path: Path) -> RunFindings:
    """Look at a run directory. Raises RunDirError if it is none."""
    if not (path / CONFIG).exists():
        raise RunDirError(f"{path}: a directory, but not a run (there is no {CONFIG}); name a file to look at data")
    found = checkpoint.newest(path / "checkpoints")
    lines = read_metrics(path)
    ids = found.ids if found is not None else 0
    state = found.state if found is not None else {}
    return RunFindings(path, (path / CONFIG).read_text(), lines, found.path if found else None, ids, state)


def truth_of(files: list[list[str]]) -> dict[int, float] | None:
    """The best possible AUC of each day, if the days are a synthetic log with its truth.json beside them."""
    best: dict[int, float] = {}
    for day, paths in enumerate(files):
        if "://" in paths[0]:
            return None
        path = Path(paths[0])
        truth = path.parent / "truth.json"
        if not truth.exists():
            return None
        told = {entry["file"]: entry["best_auc"] for entry in json.loads(truth.read_text()).get("days", [])}
        if path.name not in told:
            return None
        best[day] = told[path.name]
    return best
