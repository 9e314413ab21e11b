"""Kill a training run with SIGKILL at random moments and resume it; check account and AUC against a run never killed.

    python scripts/kill_and_resume.py JOB.yaml [--times 20] [--seed 0] [key=value ...]

Each round starts a fresh run, kills it after a random share of the time that an undisturbed run takes (start-up
included), resumes it, and compares. Exits with 1 if a round does not end with a closed account or its AUC is further
than 0.001 from the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOLERANCE = 0.001


def command(job: str, run: Path, overrides: list[str], resume: bool = False) -> list[str]:
    start = [sys.executable, "-m", "paceline", "train", job, *overrides, "--run-dir", str(run)]
    return [*start, "--resume"] if resume else start


def last_line(run: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return line


def evaluations(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["day"], line["auc"]) for line in lines if line["event"] == "evaluation"]


def one_round(job: str, run: Path, overrides: list[str], moment: float, whole: dict[str, Any], days: int) -> str | None:
    """Start, kill after `moment` seconds, resume. Returns what is wrong, or None."""
    process = subprocess.Popen(command(job, run, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(moment)
        when = "after its end"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        when = "before the first day was over"
        if (run / "metrics.jsonl").exists() and evaluations(run):
            when = f"in day {evaluations(run)[-1][0]}"
    checkpoints = sorted(p.name for p in (run / "checkpoints").glob("[0-9]*"))
    # Killed before the run had begun there is nothing to resume: a user starts it again.
    begun = (run / "config.yaml").exists()
    again = subprocess.run(command(job, run, overrides, resume=begun), capture_output=True, text=True, check=False)
    if again.returncode:
        return f"resume ended with {again.returncode}: {again.stderr.strip()}"
    end = last_line(run)
    print(
        f"killed at {moment:5.2f} s, {when}, checkpoint {checkpoints[-1] if checkpoints else 'none'}:"
        f" {end['samples_read']:,} = {end['samples_applied']:,} + {end['samples_dropped']:,},"
        f" AUC {end['auc']:.5f} ({end['auc'] - whole['auc']:+.5f})",
        flush=True,
    )
    if end["event"] != "end" or end["samples_read"] != end["samples_applied"] + end["samples_dropped"]:
        return f"the account does not close: {end}"
    if end["samples_read"] != whole["samples_read"]:
        return f"{end['samples_read']} samples instead of {whole['samples_read']}"
    if len(evaluations(run)) != days or len({day for day, _ in evaluations(run)}) != days:
        return f"evaluations {evaluations(run)} instead of one for each of {days} days"
    if abs(end["auc"] - whole["auc"]) > TOLERANCE:
        return f"AUC {end['auc']} is further than {TOLERANCE} from {whole['auc']}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "whole"
        started = time.monotonic()
        subprocess.run(command(options.job, first, options.overrides), check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
        whole, days = last_line(first), len(evaluations(first))
        print(f"undisturbed: {took:.1f} s, AUC {whole['auc']:.5f}, {whole['samples_read']:,} samples", flush=True)
        wrong = []
        for number in range(options.times):
            moment = rng.uniform(0.02, 1.0) * took
            problem = one_round(options.job, Path(folder) / str(number), options.overrides, moment, whole, days)
            if problem:
                wrong.append(f"round {number}: {problem}")
                print(wrong[-1], flush=True)
    print(f"{options.times - len(wrong)} of {options.times} rounds are right")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
