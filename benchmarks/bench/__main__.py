"""paceline beside its peers, in one run: the same data, model, batch, precision, optimizer and number of threads.

    make bench [BENCH_JSON=FILE]        or: python -m benchmarks.bench [--quick] [--json FILE] [--out FOLDER] ...

See docs/benchmarks.md. Everything measured so far is written after every case.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import cases, limits, machine, plot, report, startup
from benchmarks.bench.process import ROOT
from benchmarks.bench.rounds import Sizes, measure

from paceline.runtimes.precision import advice, layer_speeds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and shorter rounds: under ten minutes")
    parser.add_argument("--json", type=Path, help="the list of results, by itself")
    parser.add_argument("--out", type=Path, help="table, plot and details (benchmarks/results, build/bench if quick)")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="what scripts/setup_peers.py made")
    parser.add_argument("--only", default="", help="a regular expression: cases whose title has it")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a round, about, for each system")
    parser.add_argument(
        "--bf16", action="store_true", help="measure bf16 also on a processor without instructions for it"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each system, in all")
    parser.add_argument("--samples", type=int, help="that lie in memory, and are gone through over and over")
    options = parser.parse_args()
    quick = options.quick
    out = options.out or (ROOT / "build" / "bench" if quick else ROOT / "benchmarks" / "results")
    out.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(
        rounds=options.rounds or (3 if quick else 5),
        seconds=options.seconds or (1.0 if quick else 3.0),
        samples=options.samples or (1 << 17 if quick else 1 << 19),
        threads=options.threads,
        check=16 if quick else 32,
    )
    suite = cases.QUICK if quick else cases.FULL
    slow = None if options.bf16 else advice(*layer_speeds())
    if slow is not None:
        suite = cases.without_bf16(suite)
    chosen = [case for case in suite if re.search(options.only, case.title)]
    book = Book(out, options.json)
    if slow is not None:
        book.add("bf16", f"No case in bf16: {slow.split(': ', 1)[1]}.".replace("; set precision: fp32", ""), slow)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as folder:
        for number, case in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}, {time.monotonic() - started:.0f} s] {case.title}", flush=True)
            book.results.append(measure(case, sizes, Path(folder), options.peers))
            book.write()
            print(report.table(book.results[-1]) + "\n", flush=True)
        ids = sorted({case.ids for case in chosen if case.ids} or {cases.M})
        if re.search(options.only, "limits"):
            book.add("limits", *limits.measure(sizes, Path(folder), ids, bf16=slow is None))
        if re.search(options.only, "start-up"):
            book.add("start-up", *startup.measure(sizes, Path(folder)))
    print(f"{time.monotonic() - started:.0f} s; {out / 'table.md'}, plot.png, details.json")


class Book:
    """What was measured so far, and where it is written."""

    def __init__(self, out: Path, listed: Path | None) -> None:
        self._out, self._listed = out, listed
        self._machine = machine.describe()
        self.results: list[report.Measured] = []
        self._texts: list[str] = []
        self._others: dict[str, Any] = {}

    def add(self, name: str, text: str, values: Any) -> None:
        """Something that is no case: its text goes into the table, its numbers into the details."""
        self._texts.append(text)
        self._others[name] = values
        print(text + "\n", flush=True)
        self.write()

    def write(self) -> None:
        """Table, plot and details, and the list if it was asked for."""
        lines = report.as_json(self.results)
        if self._listed is not None:
            self._listed.write_text(json.dumps(lines, indent=1) + "\n")
        versions = {name: number for found in self.results for name, number in found.versions.items()}
        head = [f"    {machine.command()}", "", f"Of commit {machine.commit(ROOT) or 'unknown'}. The machine:", ""]
        peers = "- packages: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        text = [
            "\n".join([*head, machine.as_text(self._machine), peers]),
            *map(report.table, self.results),
            *self._texts,
        ]
        (self._out / "table.md").write_text("\n\n".join(text) + "\n")
        (self._out / "details.json").write_text(json.dumps(self._details(versions), indent=1) + "\n")
        if self.results:
            plot.draw(self.results, self._out / "plot.png")

    def _details(self, versions: dict[str, str]) -> dict[str, Any]:
        cases_ = [
            {"case": r.case.title, "rates": r.rates, "losses": r.losses, "left_out": r.left_out} for r in self.results
        ]
        told = {"machine": self._machine, "versions": versions, "command": machine.command()}
        return {**told, "results": report.as_json(self.results), "rounds": cases_, **self._others}


if __name__ == "__main__":
    main()
