"""The virtual cluster against the local runtime: samples per real second with the same model, and memory.

    python benchmarks/simulation.py [--rounds 5] [--workers 3000] [--json FILE]

Both train the same log with the same job: the local runtime with one worker thread per core, the virtual cluster with
3000 workers and as many real threads, and with one thread that stacks gradients. Whole runs without evaluation, each
in a process of its own, interleaved; medians, ratios to the local runtime of the same round, and the largest resident
memory of the simulation. Two models: a small one, where calls cost most, and one of usual size (1.3 MB of dense
parameters, a copy of which every worker in flight has as its gradient).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "small": {"name": "deepfm", "dim": 8, "hidden": [128, 64]},
    "usual": {"name": "deepfm", "dim": 16, "hidden": [400, 400]},
}
BODIES = ("local", "virtual", "virtual, stacked")


def job(folder: Path, model: str, workers: int) -> dict[str, Any]:
    return {
        "data": {"format": "criteo", "days": str(folder / "day_*.tsv.zst")},
        "model": MODELS[model],
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.002}, "dense": {"name": "adagrad", "lr": 0.001}},
        "batch": {"global": 4096, "local": 256},
        "pace": {"name": "async"},
        "workers": workers,
        "evaluate": "none",
        "checkpoint": {"every": 10**12, "keep": 1},
    }


def measure(body: str, model: str, folder: Path, workers: int) -> dict[str, float]:
    """Run once in this process."""
    from paceline.clusterspec import ClusterSpec
    from paceline.jobfile import check
    from paceline.simulation import simulate
    from paceline.training import train

    cores = os.cpu_count() or 1
    run = Path(tempfile.mkdtemp(dir=folder))
    if body == "local":
        end = train(check(job(folder, model, cores), "benchmark"), folder, run / "run")
    else:
        spec = ClusterSpec.model_validate({"workers": workers, "compute": {"speed_sigma": 0.3, "jitter_sigma": 0.1}})
        how = {"stacked": 32} if "stacked" in body else {"threads": cores}
        end = simulate(check(job(folder, model, workers), "benchmark"), spec, folder, run / "run", **how)  # type: ignore[arg-type]
    shutil.rmtree(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"samples_per_s": end["samples_per_s"], "memory_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=1_600_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        body, model, folder = options.once
        print(json.dumps(measure(body, model, Path(folder), options.workers)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        from paceline.data.synth import SynthSpec
        from paceline.data.synth_write import write_log

        write_log(SynthSpec(rows=options.samples, days=1, compression="zst", seed=3), Path(folder))
        for model in MODELS:
            found: dict[str, list[dict[str, float]]] = {body: [] for body in BODIES}
            for _ in range(options.rounds):
                for body in BODIES:
                    command = [
                        sys.executable,
                        __file__,
                        "--workers",
                        str(options.workers),
                        "--once",
                        body,
                        model,
                        folder,
                    ]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[body].append(json.loads(done.stdout.splitlines()[-1]))
            for body in BODIES:
                pairs = zip(found[body], found["local"], strict=True)
                results.append(
                    {
                        "model": model,
                        "body": body,
                        "samples_per_s": statistics.median(f["samples_per_s"] for f in found[body]),
                        "ratio_to_local": statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in pairs),
                        "memory_gb": max(f["memory_gb"] for f in found[body]),
                    }
                )
                r = results[-1]
                told = f"{r['samples_per_s']:>10,.0f} samples/s  {r['ratio_to_local']:.2f} of local"
                print(f"{model:8}{body:18}{told}  {r['memory_gb']:.1f} GB", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
