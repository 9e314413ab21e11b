"""Reading a click log, of Criteo's TSV.gz or Parquet: paceline to batches of 64-bit ids, polars and pyarrow to columns.

The peers parse columns and do no more; paceline also hashes every cell and cuts batches. A step is one pass over the
file, and gives no loss.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.systems.worker import Setup, serve


class Pass:
    """Reads the file once a step, and sees that all of its rows came."""

    def __init__(self, path: str, read: Callable[[str], int]) -> None:
        self._path, self._read = path, read
        self._rows = read(path)

    def train(self, steps: int) -> list[float]:
        for _ in range(steps):
            rows = self._read(self._path)
            if rows != self._rows:
                raise RuntimeError(f"{self._path}: {rows} rows, and {self._rows} the time before")
        return []


def with_paceline(setup: Setup) -> Callable[[str], int]:
    from paceline.assembly import make_log
    from paceline.data.stream import Plan, day_batches
    from paceline.jobfile import check

    criteo = setup.model == "tsv.gz"
    features = {
        "label": {"column": "click"},
        "numeric": [f"i{n}" for n in range(1, 14)],
        "categorical": [f"c{n}" for n in range(1, 27)],
    }
    data = {"format": "criteo" if criteo else "parquet", "days": ["unused"]}
    log = make_log(check({"data": data, **({} if criteo else {"features": features})}, "bench"))

    def read(path: str) -> int:
        with contextlib.closing(day_batches(log, [path], Plan(0, setup.batch))) as source:
            return sum(batch.samples for batch in source)

    return read


def with_polars(setup: Setup) -> Callable[[str], int]:
    import polars

    if setup.model == "tsv.gz":
        return lambda path: polars.read_csv(path, separator="\t", has_header=False).height
    return lambda path: polars.read_parquet(path).height


def with_pyarrow(setup: Setup) -> Callable[[str], int]:
    import pyarrow
    from pyarrow import csv, parquet

    pyarrow.set_cpu_count(setup.threads)
    if setup.model == "tsv.gz":
        options = csv.ReadOptions(autogenerate_column_names=True)
        tabs = csv.ParseOptions(delimiter="\t")
        return lambda path: int(csv.read_csv(path, read_options=options, parse_options=tabs).num_rows)
    return lambda path: int(parquet.read_table(path).num_rows)


READERS = {"paceline": with_paceline, "polars": with_polars, "pyarrow": with_pyarrow}


def build(setup: Setup) -> Pass:
    os.environ["POLARS_MAX_THREADS"] = str(setup.threads)  # read when it is imported
    return Pass(str(Path(setup.folder) / f"day_0.{setup.model}"), READERS[setup.variant](setup))


if __name__ == "__main__":
    serve(build, "paceline", "polars", "pyarrow")
