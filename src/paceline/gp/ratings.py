"""Context-aware rating files: one row per rating, with a user, an item and any number of contexts."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from paceline.batch import BadRow
from paceline.data.files import blocks, expand, open_raw
from paceline.data.parquet import open_parquet
from paceline.errors import DataError, suggest
from paceline.gp.config import RatingsConfig

Texts = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]

MISSING = "(missing)"
_FIRST_LINE = 1


@dataclass(frozen=True, slots=True)
class Ratings:
    """Rows as they were read. users, items: texts [n]; contexts: by column, texts (categorical; MISSING where there
    is none) or float64 (real; NaN where there is none), each [n]; ratings: float64 [n].
    """

    users: Texts
    items: Texts
    contexts: dict[str, Texts | Floats]
    ratings: Floats

    def __len__(self) -> int:
        return len(self.ratings)

    def take(self, rows: npt.NDArray[np.int64]) -> Ratings:
        """The rows with these numbers."""
        contexts = {name: column[rows] for name, column in self.contexts.items()}
        return Ratings(self.users[rows], self.items[rows], contexts, self.ratings[rows])


def read_ratings(
    patterns: str | list[str], config: RatingsConfig, base: Path, told: Callable[[tuple[BadRow, ...]], None]
) -> Ratings:
    """The ratings of all files; relative paths are beside `base`. Rows that are left out (on_bad_row: skip) are `told`.

    Raises DataError that names file, line and value.
    """
    parts = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            paths = expand(pattern, base)
            parts += [_read(path, config, told) for path in paths]
        except DataError as error:  # the words of the readers of click logs
            raise DataError(str(error).replace("data.days", "ratings.files").replace("data.", "ratings.")) from error
    contexts = {c.column: np.concatenate([p.contexts[c.column] for p in parts]) for c in config.contexts}
    users, items, ratings = (np.concatenate([getattr(p, k) for p in parts]) for k in ("users", "items", "ratings"))
    return Ratings(users, items, contexts, ratings)


def _read(path: str, config: RatingsConfig, told: Callable[[tuple[BadRow, ...]], None]) -> Ratings:
    table, lines, bad = _parquet(path, config) if config.format == "parquet" else _text(path, config)
    missing = set(config.missing)
    reasons: dict[int, str] = {}

    def texts(name: str) -> Texts:
        return np.array(table[name].to_pylist(), dtype=object)

    def floats(name: str, may_miss: bool) -> Floats:
        out = np.full(len(lines), np.nan)
        for row, text in enumerate(texts(name)):
            if text is None or text in missing:
                if not may_miss:
                    reasons.setdefault(row, f"no {name}")
                continue
            value = _number(text)
            if value is None:
                reasons.setdefault(row, f"{name}: {text!r} is no finite number")
            else:
                out[row] = value
        return out

    def ids(name: str) -> Texts:
        found = texts(name)
        for row, text in enumerate(found):
            if text is None or text in missing:
                reasons.setdefault(row, f"no {name}")
        return found

    users, items, ratings = ids(config.user), ids(config.item), floats(config.rating, False)
    contexts: dict[str, Texts | Floats] = {}
    for context in config.contexts:
        if context.kind == "real":
            contexts[context.column] = floats(context.column, True)
        else:
            named = [MISSING if t is None or t in missing else t for t in texts(context.column)]
            contexts[context.column] = np.array(named, dtype=object)
    bad += [BadRow(path, lines[row], reason) for row, reason in reasons.items()]
    bad.sort(key=lambda row: row.line)
    if bad and config.on_bad_row == "error":
        more = f" (and {len(bad) - 1:,} more rows)" if len(bad) > 1 else ""
        raise DataError(
            f"{path}, line {bad[0].line}: {bad[0].reason}{more}; mend it, or set ratings.on_bad_row: skip to leave such"
            " rows out, or ratings.missing to the values that stand for none"
        )
    told(tuple(bad))
    keep = np.setdiff1d(np.arange(len(lines)), np.array(list(reasons), dtype=np.int64))
    if not len(keep):
        raise DataError(f"{path}: no row with a user, an item and a rating in it")
    return Ratings(users, items, contexts, ratings).take(keep)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _text(path: str, config: RatingsConfig) -> tuple[pa.Table, list[int], list[BadRow]]:
    """(the columns that are used, as texts; their line numbers; rows with another number of cells)."""
    data = b"".join(blocks(path)).rstrip(b"\r\n \t") + b"\n"
    bad: list[BadRow] = []

    def wrong(row: csv.InvalidRow) -> str:
        cells = f"{row.actual_columns} cells, not {row.expected_columns}"
        bad.append(BadRow(path, row.number or 0, cells))
        return "skip"

    delimiter = "\t" if config.format == "tsv" else ","
    parse = csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False, invalid_row_handler=wrong)
    read = csv.ReadOptions(use_threads=False, column_names=config.columns)
    try:
        names = (
            config.columns
            or csv.read_csv(io.BytesIO(data.split(b"\n", 1)[0] + b"\n"), csv.ReadOptions(), parse).column_names
        )
        _check_columns(path, names, config)
        as_text = csv.ConvertOptions(
            include_columns=list(dict.fromkeys(config.used())),
            column_types=dict.fromkeys(config.used(), pa.string()),
            strings_can_be_null=False,
        )
        table = csv.read_csv(io.BytesIO(data), read, parse, as_text)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a {config.format} file in UTF-8: {error}") from error
    first = _FIRST_LINE if config.columns else _FIRST_LINE + 1
    gone = {row.line for row in bad}
    lines = [n for n in range(first, first + table.num_rows + len(bad)) if n not in gone]
    return table, lines, bad


def _parquet(path: str, config: RatingsConfig) -> tuple[pa.Table, list[int], list[BadRow]]:
    with open_raw(path) as raw:
        source = open_parquet(raw, path)
        _check_columns(path, source.schema_arrow.names, config)
        table = source.read(columns=list(dict.fromkeys(config.used())))
    try:
        table = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: a column is neither text nor a number: {error}") from error
    return table, list(range(1, table.num_rows + 1)), []


def _check_columns(path: str, names: list[str], config: RatingsConfig) -> None:
    for name in config.used():
        if name not in names:
            raise DataError(f"{path}: there is no column {name!r}{suggest(name, names)}")
        if names.count(name) > 1:
            raise DataError(f"{path}: there are {names.count(name)} columns {name!r}; give them different names")
