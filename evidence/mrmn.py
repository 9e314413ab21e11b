"""MRMN: several types of feedback rank the target's items better than the target alone, CML or LRML.

Claim (Zhou et al., IJCAI 2019; the model here is a reconstruction): a memory network over all types of feedback beats
competitive baselines. Per data set: MRMN with all types against MRMN with the target alone, and against CML and LRML of
the same size, each with the target alone and with all feedback as if it were one type. Real data: RetailRocket (view,
cart, purchase) and Tmall (collect, cart, buy).
"""

from __future__ import annotations

import gzip
import io
import statistics
from dataclasses import dataclass
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from harness import COLOURS, DATA, WORK, Arm, Result, Study, axes, mean_spread, merged, table

DIM, SLOTS = 32, 16
FIRST_SEED = 101  # settings were chosen with seed 0, whose held-out rows and draws are others
USERS = 12  # of Tmall, every twelfth user


@dataclass(frozen=True, eq=False)
class Task:
    """A data set and a way to hold out. target: the type that is ranked for; epochs: of arms with all types; alone: of
    arms with the target alone, whose epochs are shorter; ours: which MRMN is compared."""

    name: str
    title: str
    interactions: dict[str, Any]
    epochs: int
    alone: int
    ours: str = "mrmn-all"

    @property
    def target(self) -> str:
        last: str = self.interactions["types"][-1]
        return last


ROCKET = Task(
    "retailrocket",
    "RetailRocket",
    {"types": ["view", "cart", "purchase"], "holdout": {"rows": "random"}},
    12,
    40,
    "mrmn-strength",
)
TMALL = Task("tmall", f"Tmall, every {USERS}th user", {"types": ["collect", "cart", "buy"]}, 12, 16)
TASKS = (ROCKET, TMALL)


def files(quick: bool) -> dict[str, dict[str, Any]]:
    """Write each data set as one log with a column for the type; the job's keys that name it."""
    folder = WORK / ("mrmn-quick" if quick else "mrmn")
    folder.mkdir(parents=True, exist_ok=True)
    with ZipFile(DATA / "retailrocket" / "Retailrocket_Ecommerce.zip") as archive:
        names = {"view": "view", "cart": "add_to_cart", "purchase": "purchase"}
        read = {kind: archive.read(f"RetailRocket_Ecommerce/{name}_ecommerce.dat") for kind, name in names.items()}
    options = csv.ParseOptions(delimiter="\t")
    logs = {k: csv.read_csv(io.BytesIO(v), parse_options=options).select([0, 1]) for k, v in read.items()}
    _write(folder / "retailrocket.tsv", logs, 10 if quick else 1)
    pairs = {}
    for name in ("collect", "cart", "buy", "test"):
        with gzip.open(DATA / "tmall" / f"{name}.txt.gz") as text:
            options, columns = csv.ParseOptions(delimiter=" "), csv.ReadOptions(column_names=["user", "item"])
            pairs[name] = csv.read_csv(text, columns, options)
    test = {"buy": pairs.pop("test")}
    _write(folder / "tmall.tsv", pairs, 60 if quick else USERS)
    _write(folder / "tmall-test.tsv", test, 60 if quick else USERS)
    rocket = {"data": {"format": "tsv", "days": str(folder / "retailrocket.tsv")}}
    tmall = {"data": {"format": "tsv", "days": str(folder / "tmall.tsv")}}
    tmall |= {"interactions": {"test": str(folder / "tmall-test.tsv")}}
    return {ROCKET.name: rocket, TMALL.name: tmall}


def _write(path: Any, logs: dict[str, Any], users: int) -> None:
    """One file of (user, item, type), of every so manieth user."""
    parts = []
    for kind, log in logs.items():
        log = log.rename_columns(["user", "item"])
        user = log["user"]
        chosen = pc.equal(pc.subtract(user, pc.multiply(pc.divide(user, users), users)), 0)
        log = log.filter(chosen)
        parts.append(log.append_column("type", pa.array([kind] * log.num_rows)))
    csv.write_csv(pa.concat_tables(parts), path, csv.WriteOptions(delimiter="\t", quoting_style="none"))


JOB: dict[str, Any] = {
    "interactions": {
        "user": "user",
        "item": "item",
        "type": "type",
        "ranking": {"at": [10], "every": 1000, "most": 3000},
    },
    "batch": {"global": 1024},
    "pace": {"name": "sync"},
    "checkpoint": {"every": 10**12, "keep": 1},
}
CLUSTER = {"workers": 1, "compute": {"fixed_ms": 5}}


def optimizer(rows: float, dense: float) -> dict[str, Any]:
    return {"optimizer": {"sparse": {"name": "adam", "lr": rows}, "dense": {"name": "adam", "lr": dense}}}


MRMN = {"model": {"name": "mrmn", "dim": DIM, "slots": SLOTS, "margins": [1.0]}, **optimizer(0.003, 1e-5)}
STRENGTH = {"model": {"margins": [0.5, 1.0, 2.0]}, "interactions": {"harder": 0.5}}
HARDER = {"interactions": {"harder": 0.5}}
CML = {"model": {"name": "cml", "dim": DIM, "margin": 1.0}, **optimizer(0.003, 1e-5)}
LRML = {"model": {"name": "lrml", "dim": DIM, "slots": SLOTS, "margin": 1.0}, **optimizer(0.003, 1e-4)}

# name -> (what a person reads, settings, whether the target alone is trained on)
ARMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mrmn-all": ("MRMN, all types", MRMN, False),
    "mrmn-strength": ("MRMN, all types, by strength", merged(MRMN, STRENGTH), False),
    "mrmn-target": ("MRMN, target alone", MRMN, True),
    "cml-target": ("CML, target alone", CML, True),
    "lrml-target": ("LRML, target alone", LRML, True),
    "cml-all": ("CML, all as one type", CML, False),
    "lrml-all": ("LRML, all as one type", LRML, False),
    "cml-harder": ("CML, all as one, harder negatives", merged(CML, HARDER), False),
}
RIVALS = ("mrmn-target", "cml-target", "lrml-target", "cml-all", "lrml-all", "cml-harder")


def main() -> None:
    study = Study("mrmn", __doc__ or "")
    data = files(study.quick)
    arms = []
    for task in TASKS:
        for name, (_, settings, alone) in ARMS.items():
            epochs = 1 if study.quick else task.alone if alone else task.epochs
            given = merged(task.interactions, {"epochs": epochs}, {"train": [task.target]} if alone else {})
            for seed in study.seeds:
                job = merged(JOB, data[task.name], {"interactions": given}, settings, {"seed": FIRST_SEED + seed})
                tags = {"task": task.name, "arm": name}
                arms.append(Arm(f"{task.name}-{name}", job, CLUSTER, None, seed, tags=tags))
    report(study, study.run(arms))


Marks = dict[str, list[float]]


def marks(results: list[Result], task: Task, arm: str) -> Marks:
    """Of each seed: all/hr@10 and so on, of the target, after the last epoch."""
    found: Marks = {}
    for result in results:
        if result.arm.tags == {"task": task.name, "arm": arm}:
            told = result.end["ranking"]["types"][task.target]
            for how in ("all", "sampled"):
                for key in ("hr@10", "ndcg@10"):
                    found.setdefault(f"{how}/{key}", []).append(told[how][key])
    return found


def report(study: Study, results: list[Result]) -> None:
    minutes = sum(r.minutes for r in results)
    text = f"# MRMN on several types of feedback\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{DIM} numbers a vector, {SLOTS} slots, 4 negatives, {len(study.seeds)} seed(s), ± half the range;"
    text += f" {minutes:.0f} minutes of processes on a busy machine."
    text += " Candidates are all items but those that the user has feedback of"
    text += " the target on in training; or 99 of them, drawn. Every arm has the same held-out rows and candidates."
    text += " By strength: margins 0.5, 1 and 2"
    text += (
        " and half of the negatives from the user's items of weaker feedback; else one margin and uniform negatives.\n"
    )
    for task in TASKS:
        mine = [r for r in results if r.arm.tags["task"] == task.name]
        if not mine:
            continue
        told = mine[0].end["ranking"]["types"][task.target]
        text += f"\n## {task.title}: {task.target}, {told['tests']:,} held out, {told['all']['items']:,} items,"
        text += f" {task.epochs} epochs ({task.alone} of"
        text += " the target alone)\n\n"
        rows = []
        for arm, (title, _, _) in ARMS.items():
            found = marks(results, task, arm)
            if found:
                rows.append([title, *(mean_spread(found[key], 4) for key in found)])
        head = ["", "HR@10 (all items)", "NDCG@10 (all items)", "HR@10 (of 99 drawn)", "NDCG@10 (of 99 drawn)"]
        text += table(head, rows) + f"\n{verdict(results, task)}\n"
    study.write("table.md", text)
    _plot(study, results)


def verdict(results: list[Result], task: Task) -> str:
    """In how many seeds MRMN with all types is ahead of each rival, on both marks among all items."""
    ours = marks(results, task, task.ours)
    told = []
    for rival in RIVALS:
        theirs = marks(results, task, rival)
        if not ours or not theirs:
            continue
        pairs = {k: list(zip(ours[k], theirs[k], strict=True)) for k in ("all/hr@10", "all/ndcg@10")}
        wins = "/".join(str(sum(a > b for a, b in pair)) for pair in pairs.values())
        told.append(f"{ARMS[rival][0]} {wins}")
    seeds = len(ours.get("all/hr@10", []))
    return f"Seeds of {seeds} in which {ARMS[task.ours][0]} is ahead (HR@10/NDCG@10, all items): {'; '.join(told)}."


def _plot(study: Study, results: list[Result]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2))
    shown = list(ARMS)
    for place, task in enumerate(TASKS, 1):
        axis = axes(figure, 1, len(TASKS), place)
        for row, arm in enumerate(shown):
            found = marks(results, task, arm)
            for shift, (key, colour) in enumerate((("all/hr@10", COLOURS[0]), ("all/ndcg@10", COLOURS[4]))):
                if not found:
                    continue
                values, at = found[key], row + 0.36 * (shift - 0.5)
                mean = statistics.mean(values)
                axis.barh(at, mean, 0.34, color=colour, label=("HR@10", "NDCG@10")[shift] if row == 0 else None)
                axis.plot([min(values), max(values)], [at, at], color="#000000", linewidth=1.2)
        axis.set_yticks(range(len(shown)), [ARMS[arm][0] for arm in shown] if place == 1 else [""] * len(shown))
        axis.invert_yaxis()
        axis.set_title(task.title, loc="left", fontsize=10)
        axis.set_xlabel(f"{task.target}, among all items")
    figure.axes[1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.tight_layout()
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
