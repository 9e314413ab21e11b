"""What every evidence script shares: logs, runs that are kept, tables with their spread, plots in one style.

A script states arms (a job on a cluster), runs each with several seeds in virtual time, and writes into
evidence/results/<claim>/ (quick mode: evidence/.work/quick/<claim>/):

    runs/<arm>-<seed>.json    settings, metrics lines and real minutes of each run: a script started again reads them
    table.md, plot.png        what a person reads

Logs and run directories lie in evidence/.work (PACELINE_EVIDENCE overrides), which may be removed at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("PACELINE_EVIDENCE", HERE / ".work")).absolute()
DATA = Path(os.environ.get("PACELINE_DATA", HERE.parents[1] / "shared" / "data")).resolve()

# A model that is small enough for fifty million rows on two cores: what is claimed is of the pace, not of the model.
MODEL = {"name": "deepfm", "dim": 8, "hidden": [32]}
FIELDS, NUMBERS = 10, 2
STACKED = 32
VERSION = 2  # of what simulations mean: raised when a change of the runtime alters numbers, so that all is run again


@dataclass(frozen=True)
class Log:
    """A synthetic click log that drifts from day to day."""

    rows: int
    days: int
    seed: int
    drift: float = 0.15
    vocabulary: int = 400_000

    def folder(self) -> Path:
        """Its folder, written if it is not there."""
        from paceline.data.synth import SynthSpec
        from paceline.data.synth_write import write_log

        name = f"log-{self.rows}-{self.days}-{self.seed}-{self.drift}-{self.vocabulary}"
        final = WORK / name
        if not final.exists():
            temporary = WORK / f".{name}-{os.getpid()}"
            spec = SynthSpec(
                rows=self.rows, days=self.days, seed=self.seed, drift=self.drift, vocabulary=self.vocabulary,
                layout="parquet", compression="none", numeric=NUMBERS, categorical=FIELDS, multi=0,
            )  # fmt: skip
            write_log(spec, temporary, lambda _: None)
            with contextlib.suppress(OSError):  # another process was quicker
                temporary.rename(final)
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def data(self) -> dict[str, Any]:
        """The job's `data` and `features`."""
        return {
            "data": {"format": "parquet", "days": str(self.folder() / "day_*.parquet")},
            "features": {
                "label": {"column": "click"},
                "numeric": [{"column": f"i{n}", "transform": "standardise"} for n in range(1, NUMBERS + 1)],
                "categorical": [f"c{n}" for n in range(1, FIELDS + 1)],
            },
        }


@dataclass(frozen=True)
class Arm:
    """One thing to be compared. start: another arm whose run this one goes on from, at day `at`."""

    name: str
    job: dict[str, Any]
    cluster: dict[str, Any]
    log: Log | None
    seed: int
    start: Arm | None = None
    at: int = 0
    tags: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Everything that its numbers depend on, with no path of this machine."""
        found = {
            "version": VERSION,
            "stacked": STACKED,
            "job": self.job,
            "cluster": self.cluster,
            "log": None if self.log is None else vars(self.log),
            "seed": self.seed,
            "start": None if self.start is None else self.start.settings(),
            "at": self.at,
        }
        plain: dict[str, Any] = json.loads(portable(json.dumps(found)))
        return plain


def portable(text: str) -> str:
    """The text with names in place of the folders of this machine."""
    return text.replace(str(WORK), "$WORK").replace(str(DATA), "$DATA").replace(str(HERE.parent), "$HERE")


def merged(base: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, the later ones on top."""
    made = copy.deepcopy(base)
    for extra in more:
        for key, value in extra.items():
            made[key] = (
                merged(made[key], value) if isinstance(value, dict) and isinstance(made.get(key), dict) else value
            )
    return made


@dataclass
class Result:
    """What a run said. lines: metrics.jsonl; days: histograms.jsonl; minutes: real ones of one process; decisions:
    autopilot.jsonl; curve: samples applied after each second, of a run under an autopilot whose tags ask for it."""

    arm: Arm
    lines: list[dict[str, Any]]
    days: list[dict[str, Any]]
    minutes: float
    decisions: list[dict[str, Any]] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)

    def auc(self) -> dict[int, float]:
        """AUC of each evaluated day."""
        return {line["day"]: line["auc"] for line in self.lines if line["event"] == "evaluation"}

    @property
    def end(self) -> dict[str, Any]:
        return self.lines[-1]


class Study:
    """A script's runs and results. quick: small sizes, to see that everything works; its figures say nothing. wide:
    what a script with that option runs in addition."""

    def __init__(self, claim: str, description: str, wide: str = "") -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--quick", action="store_true", help="small sizes, one or two seeds: a check, no evidence")
        parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2)), help="runs at a time")
        parser.add_argument("--seeds", type=int, default=None, help="number of seeds")
        parser.add_argument("--only", default="", help="run only arms whose name holds this; show what is there")
        if wide:
            parser.add_argument("--wide", action="store_true", help=wide)
        self.options = parser.parse_args()
        self.claim, self.quick = claim, self.options.quick
        self.seeds = range(self.options.seeds or (1 if self.quick else 3))
        self.out = (WORK / "quick" if self.quick else HERE / "results") / claim
        (self.out / "runs").mkdir(parents=True, exist_ok=True)
        WORK.mkdir(parents=True, exist_ok=True)

    def run(self, arms: list[Arm]) -> list[Result]:
        """Results of all arms, those with the same settings from before included."""
        wanted = [arm for arm in arms if self.options.only in arm.name]
        waiting = [arm for arm in wanted if self._stored(arm) is None]
        print(f"{self.claim}: {len(wanted) - len(waiting)} runs are there, {len(waiting)} to do", flush=True)
        for log in dict.fromkeys(arm.log for arm in waiting if arm.log is not None):
            log.folder()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.options.jobs, mp_context=context) as pool:
            starts = {json.dumps(arm.start.settings()): arm.start for arm in waiting if arm.start is not None}
            for made in [pool.submit(warm, start, self.claim) for start in starts.values()]:
                made.result()  # once each, before those that go on from it
            futures = {pool.submit(perform, arm, self.claim): arm for arm in waiting}
            for done in as_completed(futures):
                arm, value = futures[done], done.result()
                self._path(arm).write_text(portable(json.dumps({"settings": arm.settings(), **value})) + "\n")
                told = f"AUC {value['lines'][-1]['auc'] or 0:.5f} {value['minutes']:.1f} min"
                print(f"  {arm.name} seed {arm.seed}: {told}", flush=True)
        stored = [self._stored(arm) for arm in arms]
        return [result for result in stored if result is not None]

    def _path(self, arm: Arm) -> Path:
        return self.out / "runs" / f"{arm.name}-{arm.seed}.json"

    def _stored(self, arm: Arm) -> Result | None:
        path = self._path(arm)
        if not path.exists():
            return None
        value = json.loads(path.read_text())
        if value["settings"] != arm.settings():
            return None
        more = {key: value[key] for key in ("decisions", "curve") if key in value}
        return Result(arm, value["lines"], value["days"], value["minutes"], **more)

    def write(self, name: str, text: str) -> None:
        """Write and print a table."""
        (self.out / name).write_text(text)
        print(text)

    def figure(self, name: str, figure: Any) -> None:
        """Save a plot."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(figure)
        figure.savefig(self.out / name, dpi=130, bbox_inches="tight")

    @property
    def command(self) -> str:
        """The command that made the results."""
        return " ".join(["python", f"evidence/{Path(sys.argv[0]).name}", *(["--quick"] if self.quick else [])])


def perform(arm: Arm, claim: str) -> dict[str, Any]:
    """Run an arm in this process and return what it said."""
    started = time.monotonic()
    folder = _folder(arm, claim)
    _go(arm, claim, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    days = [_short(json.loads(line)) for line in (folder / "histograms.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"lines": lines, "days": days}
    if (folder / "autopilot.jsonl").exists():
        found["decisions"] = [json.loads(line) for line in (folder / "autopilot.jsonl").read_text().splitlines()]
    if "curve" in arm.tags:
        found["curve"] = _curve(folder / "pace.trace", arm.tags["curve"])
    if "keep" not in arm.tags:
        shutil.rmtree(folder)
    return {**found, "minutes": round((time.monotonic() - started) / 60, 2)}


def _curve(trace: Path, seconds: float) -> list[float]:
    """Samples applied after each `seconds`, from what the autopilot was told."""
    curve, applied = [], 0
    with open(trace) as file:
        for line in file:
            if line.startswith("< apply"):
                applied = int(line.split(maxsplit=7)[6])
            elif line.startswith("? "):
                now = float(line.rsplit(" ", 1)[1])
                while len(curve) * seconds <= now - seconds:
                    curve.append(float(applied))
    return [*curve, float(applied)]


def _folder(arm: Arm, claim: str) -> Path:
    return WORK / "runs" / claim / f"{arm.name}-{arm.seed}-{os.getpid()}"


def _go(arm: Arm, claim: str, folder: Path) -> None:
    from paceline.clusterspec import ClusterSpec
    from paceline.errors import LossError
    from paceline.jobfile import check
    from paceline.rundir import read_metrics
    from paceline.simulation import simulate

    shutil.rmtree(folder, ignore_errors=True)
    config = check(merged({"seed": arm.seed}, arm.log.data() if arm.log else {}, arm.job), arm.name)
    cluster = ClusterSpec.model_validate({"seed": arm.seed, **arm.cluster})
    resume = arm.start is not None
    if arm.start is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(warm(arm.start, claim), folder)
    try:
        simulate(config, cluster, HERE, folder, resume=resume, threads=1, stacked=STACKED)
    except LossError as error:
        # Divergence is a result: the run ends here, with what was evaluated until then.
        lines = read_metrics(folder)
        last = {
            **(lines[-1] if lines else {"day": 0, "samples_read": 0}),
            "event": "end",
            "auc": 0.5,
            "diverged": str(error),
        }
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(last) + "\n")


def warm(arm: Arm, claim: str) -> Path:
    """The run directory that others start from, made once."""
    final = WORK / "warm" / claim / f"{arm.name}-{arm.seed}"
    stamp = json.dumps(arm.settings())
    if not (final / "settings.json").exists() or (final / "settings.json").read_text() != stamp:
        shutil.rmtree(final, ignore_errors=True)
        folder = final.with_name(f".{final.name}-{os.getpid()}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _go(arm, claim, folder)
        (folder / "settings.json").write_text(stamp)
        with contextlib.suppress(OSError):
            folder.rename(final)
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _short(day: dict[str, Any]) -> dict[str, Any]:
    """A day's histograms with the idle shares of all workers as five quantiles."""
    idle, present = day.pop("idle_s"), day.pop("present_s")
    shares = sorted(idle.get(worker, 0.0) / seconds for worker, seconds in present.items() if seconds > 0)
    picked = [shares[round(q * (len(shares) - 1))] for q in (0, 0.05, 0.5, 0.95, 1)] if shares else []
    return {**day, "idle_quantiles": [round(share, 4) for share in picked]}


def mean_spread(values: list[float], digits: int = 5) -> str:
    """`mean ± half the range`, and the number of seeds where it is not three."""
    if not values:
        return "–"
    told = f"{statistics.mean(values):.{digits}f}"
    return f"{told} ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else told


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A"]


def axes(figure: Any, *place: int) -> Any:
    """Axes in the common style."""
    made = figure.add_subplot(*place)
    made.spines[["top", "right"]].set_visible(False)
    made.grid(True, color="#dddddd", linewidth=0.6)
    made.set_axisbelow(True)
    return made
