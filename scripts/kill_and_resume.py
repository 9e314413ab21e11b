"""Kill a training run with SIGKILL at random moments and resume it; check account and AUC against a run never killed.

    python scripts/kill_and_resume.py JOB.yaml [--times 20] [--seed 0] [key=value ...]

Each round starts a fresh run, kills it after a random share of the time that an undisturbed run takes (start-up
included), resumes it, perhaps kills it again (up to three times), lets it end, and compares. Exits with 1 if a round
does not end with a closed account, its AUC is further than 0.001 from the undisturbed one, or, under sync, a parameter
differs by a bit.
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

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

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


def parameters(run: Path) -> dict[str, Any]:
    """Ids, weights and slots (sorted by id) and dense parameters of a run's newest checkpoint."""
    path = max((run / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    pieces, tables = json.loads((path / "manifest.json").read_text())["pieces"], []
    for file in (file for piece in pieces for file in piece["rows"]):
        with pa.memory_map(str(path.parent / "pieces" / file["name"])) as source:
            tables.append(pa.ipc.open_file(source).read_all())
            if len(tables[-1].column("id").unique()) != tables[-1].num_rows:
                raise SystemExit(f"{file['name']}: an id has two rows")
    rows = pa.concat_tables(tables)
    ids, last = np.unique(rows.column("id").to_numpy()[::-1], return_index=True)
    order = len(rows) - 1 - last  # a later file has the newer row
    if len(ids) != sum(piece["ids"] for piece in pieces):
        raise SystemExit(f"{path}: {len(ids)} ids, which is not what the manifest says")
    flat = {name: rows.column(name).combine_chunks().flatten().to_numpy() for name in ("weights", "slots")}
    sparse = {name: values.reshape(len(rows), -1)[order] for name, values in flat.items()}
    dense = [load_file(path.parent / "pieces" / piece["dense"]["name"]) for piece in pieces]
    return {"id": ids, **sparse, **{name: value for part in dense for name, value in part.items()}}


def killed(line: list[str], moment: float) -> bool:
    """Run a command and kill it after `moment` seconds; False if it ended before."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def one_round(job: str, folder: Path, overrides: list[str], moments: list[float], whole: Path) -> str | None:
    """Start and kill, resume and kill, ... at `moments` (seconds), then resume to the end. Returns what is wrong."""
    told = []
    for moment in moments:
        # Killed before the run had begun there is nothing to resume: a user starts it again.
        alive = killed(command(job, folder, overrides, resume=(folder / "config.yaml").exists()), moment)
        days = evaluations(folder) if (folder / "metrics.jsonl").exists() else []
        where = f"in day {days[-1][0]}" if days else "before the first day was over"
        told.append(f"{moment:.2f} s ({where if alive else 'after its end'})")
        if not alive:
            break
    resume = (folder / "config.yaml").exists()
    again = subprocess.run(command(job, folder, overrides, resume), capture_output=True, text=True, check=False)
    if again.returncode:
        return f"resume ended with {again.returncode}: {again.stderr.strip()}"
    end, expected = last_line(folder), last_line(whole)
    mine, theirs = parameters(folder), parameters(whole)
    same = mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
    print(
        f"killed after {', '.join(told)}: {end['samples_read']:,} = {end['samples_applied']:,} +"
        f" {end['samples_dropped']:,}, AUC {end['auc']:.5f} ({end['auc'] - expected['auc']:+.5f}), parameters"
        f" {'bitwise the same' if same else 'differ'}",
        flush=True,
    )
    if end["event"] != "end" or end["samples_read"] != end["samples_applied"] + end["samples_dropped"]:
        return f"the account does not close: {end}"
    if end["samples_read"] != expected["samples_read"]:
        return f"{end['samples_read']} samples instead of {expected['samples_read']}"
    if [day for day, _ in evaluations(folder)] != [day for day, _ in evaluations(whole)]:
        return f"evaluations {evaluations(folder)} instead of {evaluations(whole)}"
    if abs(end["auc"] - expected["auc"]) > TOLERANCE:
        return f"AUC {end['auc']} is further than {TOLERANCE} from {expected['auc']}"
    if end["pace"] == "sync" and not same:
        return "the parameters of a sync run differ"
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
        whole = last_line(first)
        print(f"undisturbed: {took:.1f} s, AUC {whole['auc']:.5f}, {whole['samples_read']:,} samples", flush=True)
        wrong = []
        for number in range(options.times):
            moments = [rng.uniform(0.02, 1.0) * took for _ in range(rng.randint(1, 3))]
            problem = one_round(options.job, Path(folder) / str(number), options.overrides, moments, first)
            if problem:
                wrong.append(f"round {number}: {problem}")
                print(wrong[-1], flush=True)
    print(f"{options.times - len(wrong)} of {options.times} rounds are right")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
