"""DCT: dense gradients a hundred times thinner, activations twenty times, at which log loss and in which time.

Claim (Gupta et al., KDD 2021, reconstructed): hard thresholds with error feedback cut the bytes of dense gradients by
100 and those of activations by 20 at no loss of quality, and the time end to end by 37 % where the network binds.
Wanted here: log loss within 0.0005 of all gradients at 1 % of their entries, within 0.001 at 5 % of the partial sums.

The Criteo sample, day by day, each day before it is trained on; sync, global batch 256 = 4 local batches of 64, the
hyper-parameters of examples/criteo/job.yaml. Gradients: 4 virtual workers whose network moves 0.1 Gbit/s, in virtual
time. Activations: real processes, two nodes with a shard and a worker each that exchange partial sums, by bytes; their
minutes are this machine's and say nothing of a network. Needs the data (PACELINE_DATA).

The same on a synthetic log of ten million rows in ten days, with the wanted shares alone: DeepFM of 56,000 dense
parameters, global batch 1024 = 4 local batches of 256 (activations: 4096 = 2 of 2048).
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

import yaml
from gba_criteo import job
from harness import COLOURS, DATA, HERE, WORK, Arm, Log, Result, Study, axes, mean_spread, merged, portable, table

GRADIENTS = (1.0, 0.25, 0.05, 0.01, 0.001)
ACTIVATIONS = (1.0, 0.25, 0.1, 0.05)
REFRESH = 100
DAYS = 7
CLUSTER: dict[str, Any] = {
    "workers": 4,
    "compute": {"fixed_ms": 20, "per_sample_us": 50, "speed_sigma": 0.1, "jitter_sigma": 0.1},
    "network": {"bandwidth_gbps": 0.1},
    "allreduce": {"bandwidth_gbps": 0.1},
}
WAYS = {"ring": {"name": "sync"}, "push and pull": {"name": "gba"}}
Lines = list[dict[str, Any]]
CRITEO, SYNTHETIC = "Criteo", "synthetic"
LARGE: dict[str, Any] = {
    "model": {"name": "deepfm", "dim": 8, "hidden": [256, 128]},
    "optimizer": {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.001}},
    "checkpoint": {"every": 10**12, "keep": 1},
}


def main() -> None:
    study = Study("compression", __doc__ or "")
    if not (DATA / "criteo").exists():
        sys.exit(f"compression: no Criteo sample in {DATA}; set PACELINE_DATA to the folder that holds criteo/")
    days = 2 if study.quick else DAYS
    files = [str(DATA / "criteo" / f"day_{day}.tsv.gz") for day in range(days)]
    arms = []
    for seed in study.seeds:
        log = Log(100_000, 2, seed, 0.05) if study.quick else Log(10_000_000, 10, seed, 0.05)
        for way, pace in WAYS.items():
            for keep in (1.0, 0.01) if study.quick else GRADIENTS:
                compress = {"compress": {"gradients": {"keep": keep}, "refresh": REFRESH}}
                name, tags = f"{way.replace(' ', '-')}-{keep:g}", {"way": way, "keep": keep}
                made = merged(job(files), {"pace": pace, **compress})
                arms.append(Arm(name, made, CLUSTER, None, seed, tags={**tags, "log": CRITEO}))
                if keep in (1.0, 0.01):
                    large = merged(LARGE, {"batch": {"global": 1024, "local": 256}, "pace": pace, **compress})
                    arms.append(Arm(f"synthetic-{name}", large, CLUSTER, log, seed, tags={**tags, "log": SYNTHETIC}))
    gradients = study.run(arms)
    activations: dict[str, dict[float, list[Lines]]] = {CRITEO: {}, SYNTHETIC: {}}
    nodes = {"cluster": {"nodes": 2, "exchange": "substitute"}}
    for keep in (1.0, 0.1) if study.quick else ACTIVATIONS:
        thin = {"compress": {"activations": {"keep": keep}}} if keep < 1 else {}
        made = merged(job(files), nodes, {"batch": {"local": 128}}, thin)
        activations[CRITEO][keep] = [
            perform(study, f"activations-{keep:g}-{seed}", {**made, "seed": seed}) for seed in study.seeds
        ]
        if keep not in ((1.0, 0.1) if study.quick else (1.0, 0.05)):
            continue
        large = merged(LARGE, nodes, {"batch": {"global": 4096, "local": 2048}}, thin)
        activations[SYNTHETIC][keep] = [
            perform(
                study,
                f"activations-synthetic-{keep:g}-{seed}",
                merged(large, next(a.log for a in arms if a.log and a.seed == seed).data(), {"seed": seed}),
            )
            for seed in study.seeds
        ]
    report(study, gradients, activations)


def perform(study: Study, name: str, made: dict[str, Any]) -> Lines:
    """The metrics lines of a job that real processes train, kept as the runs of the harness are."""
    settings = json.loads(portable(json.dumps(made)))
    path = study.out / "cluster" / f"{name}.json"
    if path.exists() and (stored := json.loads(path.read_text()))["settings"] == settings:
        lines: Lines = stored["lines"]
        return lines
    folder = WORK / "runs" / "compression" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "paceline", "train", str(folder / "job.yaml"), "--run-dir", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    if done.returncode:
        sys.exit(f"compression: {name} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(portable(json.dumps({"settings": settings, "lines": lines})) + "\n")
    shutil.rmtree(folder)
    print(f"  {name}: log loss {lines[-1]['logloss']:.5f}", flush=True)
    return lines


def mean_of(lines: Lines, key: str) -> float:
    """Over the evaluated days."""
    return statistics.mean(line[key] for line in lines if line["event"] == "evaluation")


def factors(made: dict[str, Any], keep: float) -> tuple[float, float]:
    """(how many times fewer bytes of dense gradients, counted as values; as values with their places)."""
    from paceline.assembly import make_inputs, make_model
    from paceline.exchange.thin import thin_bytes
    from paceline.jobfile import check
    from paceline.params.feedback import Thinning, expected_entries

    config = check(made, "compression")
    sizes = [p.numel() for p in make_model(config, make_inputs(config)).parameters()]
    values, places = thin_bytes(sum(sizes), expected_entries(Thinning(keep, REFRESH), sizes))
    return 4 * sum(sizes) / values, 4 * sum(sizes) / (values + places)


def report(study: Study, gradients: list[Result], activations: dict[str, dict[float, list[Lines]]]) -> None:
    text = f"# Thin gradients and activations\n\n    {study.command}\n\n{(__doc__ or '').strip()}\n\n"
    text += f"{len(study.seeds)} seed(s), ± half the range; {sum(r.minutes for r in gradients):.0f} minutes of one core"
    text += " for the virtual runs.\n"
    for log in (CRITEO, SYNTHETIC):
        mine = [r for r in gradients if r.arm.tags["log"] == log]
        text += f"\n## Gradients, {log}\n\n{_gradients(mine)}"
    for log, found in activations.items():
        text += f"\n## Activations, {log}\n\n{_activations(found)}"
    study.write("table.md", text)
    criteo = [r for r in gradients if r.arm.tags["log"] == CRITEO]
    _plot(study, criteo, activations[CRITEO], _plain(criteo))


def _plain(gradients: list[Result]) -> dict[tuple[str, int], Result]:
    return {(r.arm.tags["way"], r.arm.seed): r for r in gradients if r.arm.tags["keep"] == 1}


def _gradients(gradients: list[Result]) -> str:
    plain, rows = _plain(gradients), []
    for way in WAYS:
        for keep in sorted({r.arm.tags["keep"] for r in gradients}, reverse=True):
            runs = [r for r in gradients if (r.arm.tags["way"], r.arm.tags["keep"]) == (way, keep)]
            bases = [plain[way, r.arm.seed] for r in runs]
            losses = [mean_of(r.lines, "logloss") for r in runs]
            gaps = [loss - mean_of(base.lines, "logloss") for loss, base in zip(losses, bases, strict=True)]
            aucs = [mean_of(r.lines, "auc") for r in runs]
            times = [
                1 - r.end["virtual_seconds"] / base.end["virtual_seconds"] for r, base in zip(runs, bases, strict=True)
            ]
            arm = runs[0].arm
            fewer = factors(merged(arm.log.data() if arm.log else {}, arm.job), keep)
            rows.append(
                [way, f"{keep:g}", f"{fewer[0]:.0f}", f"{fewer[1]:.1f}", mean_spread(losses), mean_spread(gaps),
                 mean_spread(aucs), f"{statistics.mean(times):.1%}"]
            )  # fmt: skip
    head = ["way", "keep", "times fewer: values", "with places", "log loss", "− all", "AUC", "less virtual time"]
    return table(head, rows)


def _activations(activations: dict[float, list[Lines]]) -> str:
    rows, base_lines = [], activations[1.0]
    for keep, found in activations.items():
        losses = [mean_of(lines, "logloss") for lines in found]
        gaps = [mean_of(a, "logloss") - mean_of(b, "logloss") for a, b in zip(found, base_lines, strict=True)]
        sums, places, all_sent = (statistics.mean(sent(lines, kinds) for lines in found) for kinds in KINDS)
        whole, _, whole_sent = (statistics.mean(sent(lines, kinds) for lines in base_lines) for kinds in KINDS)
        rows.append(
            [f"{keep:g}", f"{whole / sums:.1f}", f"{whole / (sums + places):.1f}", f"{whole_sent / all_sent:.2f}",
             mean_spread(losses), mean_spread(gaps), mean_spread([mean_of(lines, "auc") for lines in found])]
        )  # fmt: skip
    head = ["keep", "times fewer: sums", "with places", "times fewer: everything", "log loss", "− all", "AUC"]
    return table(head, rows)


KINDS: tuple[tuple[str, ...] | None, ...] = (("sums",), ("sums_places",), None)


def sent(lines: Lines, kinds: tuple[str, ...] | None) -> float:
    """Bytes of a worker and update, of these kinds or of all."""
    measured = lines[-1]["bytes_measured"]
    return float(sum(measured.get(kind, 0) for kind in (measured if kinds is None else kinds)))


def _plot(
    study: Study, gradients: list[Result], activations: dict[float, list[Lines]], plain: dict[tuple[str, int], Result]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4))
    left, right = axes(figure, 1, 2, 1), axes(figure, 1, 2, 2)
    for way, colour in zip(WAYS, COLOURS, strict=False):
        points: dict[float, list[tuple[float, float]]] = {}
        for r in gradients:
            if r.arm.tags["way"] == way:
                base = plain[way, r.arm.seed]
                gap = mean_of(r.lines, "logloss") - mean_of(base.lines, "logloss")
                saved = 1 - r.end["virtual_seconds"] / base.end["virtual_seconds"]
                points.setdefault(r.arm.tags["keep"], []).append((gap, saved))
        keeps = sorted(points)
        gaps = [statistics.mean(gap for gap, _ in points[keep]) for keep in keeps]
        left.plot(keeps, gaps, "o-", color=colour, label=f"gradients, {way}")
        saved = [100 * statistics.mean(time for _, time in points[keep]) for keep in keeps]
        right.plot(keeps, saved, "o-", color=colour, label=way)
    keeps = sorted(activations)
    gaps = [
        statistics.mean(
            mean_of(a, "logloss") - mean_of(b, "logloss")
            for a, b in zip(activations[keep], activations[1.0], strict=True)
        )
        for keep in keeps
    ]
    left.plot(keeps, gaps, "s--", color=COLOURS[2], label="activations")
    left.axhline(0.0005, color=COLOURS[7], linewidth=1, linestyle=":")
    right.axhline(37, color=COLOURS[7], linewidth=1, linestyle=":")
    for axis, label, title in (
        (left, "log loss − uncompressed", "What it costs"),
        (right, "less virtual time, %", "What it saves at 0.1 Gbit/s"),
    ):
        axis.set_xscale("log")
        axis.set_xlabel("share that is sent")
        axis.set_ylabel(label)
        axis.set_title(title, loc="left")
        axis.legend(frameon=False, fontsize=9)
    study.figure("plot.png", figure)


if __name__ == "__main__":
    main()
