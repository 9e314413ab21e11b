"""A case, measured: every system prepared in a process of its own, then rounds in which they take turns."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import data
from benchmarks.bench.cases import Case, System
from benchmarks.bench.process import Failed, Process, python_of
from benchmarks.bench.report import Measured
from benchmarks.systems.worker import Setup

BATCH = 4096
MOST_STEPS = 2000
READ_ROWS = 4  # times the samples: a file's rows


@dataclass(frozen=True)
class Sizes:
    """rounds; seconds: of a round for each system, about; samples: in memory; threads: of each system; check: steps of
    the first stretch, whose losses are printed; batch: samples in an update."""

    rounds: int
    seconds: float
    samples: int
    threads: int
    check: int
    batch: int = BATCH


def measure(case: Case, sizes: Sizes, folder: Path, peers: Path) -> Measured:
    """The case's rates. One system runs at a time; who begins changes from round to round."""
    found = Measured(case)
    where, per_step = prepared(case, sizes, folder)
    with ExitStack() as stack:
        running: dict[str, Process] = {}
        steps: dict[str, int] = {}
        for system in case.systems:
            process = start(system, case, sizes, where, peers, found)
            if process is None:
                continue
            stack.callback(process.close)
            try:
                steps[system.name] = warm_up(process, system.name, sizes, case, found)
            except Failed as error:
                found.left_out[system.name] = str(error)
                continue
            running[system.name] = process
            found.rates[system.name] = []
        for number in range(sizes.rounds):
            names = list(running)
            turn = number % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                try:
                    seconds, _ = running[name].train(steps[name])
                except Failed as error:
                    found.left_out[name] = str(error)
                    del running[name], found.rates[name]
                    continue
                found.rates[name].append(steps[name] * per_step / seconds)
    return found


def start(system: System, case: Case, sizes: Sizes, where: Path, peers: Path, found: Measured) -> Process | None:
    """The system's process, prepared; None, and why in `found`, if there is none."""
    python = python_of(system.env, peers)
    if not python.exists():
        found.left_out[system.name] = "not installed: python scripts/setup_peers.py"
        return None
    asked = (case.model, case.precision or "fp32", case.optimizer or "", system.variant)
    setup = Setup(str(where), *asked, sizes.batch, sizes.threads)
    try:
        process = Process(python, f"benchmarks.systems.{system.module}", setup, where / "errors.txt")
    except Failed as error:
        found.left_out[system.name] = str(error)
        return None
    if process.left_out:
        found.left_out[system.name] = process.left_out
        process.close()
        return None
    found.versions |= process.ready
    return process


def warm_up(process: Process, name: str, sizes: Sizes, case: Case, found: Measured) -> int:
    """Train on the same first batches as everybody, keep the losses, and find how many steps make a round."""
    check = 1 if is_reading(case) else sizes.check
    _, losses = process.train(check)
    if losses:
        found.losses[name] = losses
    trial = 1 if is_reading(case) else max(check // 4, 2)
    seconds, _ = process.train(trial)
    return min(max(round(sizes.seconds * trial / seconds), 1 if is_reading(case) else 2), MOST_STEPS)


def prepared(case: Case, sizes: Sizes, folder: Path) -> tuple[Path, int]:
    """(the folder of the case's data, samples in a step). Data is written once, for all cases that need it."""
    if is_reading(case):
        rows = READ_ROWS * sizes.samples
        where = folder / f"log-{case.model}"
        if not where.exists():
            write_log(where, case.model, rows)
        return where, rows
    where = folder / f"ids-{case.ids}"
    if not where.exists():
        assert case.ids is not None
        data.write(where, case.ids, sizes.samples)
    return where, sizes.batch


def is_reading(case: Case) -> bool:
    return case.ids is None


def write_log(where: Path, suffix: str, rows: int) -> None:
    """day_0.tsv.gz in Criteo's layout, or day_0.parquet of the same columns."""
    from paceline.data.synth import SynthSpec
    from paceline.data.synth_write import write_log

    layout = {"layout": "parquet", "compression": "none", "multi": 0} if suffix == "parquet" else {}
    write_log(SynthSpec(rows=rows, days=1, vocabulary=4_000_000, seed=3, **layout), where, lambda _: None)
