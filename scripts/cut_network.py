"""Cut the network between nodes of a training cluster; the job has to finish by itself, every sample accounted for.

    python scripts/cut_network.py [job.yaml] [key=value ...] [--paces sync,gba,async] [--cuts short,pair,node]
                                  [--between node-1,node-2] [--nodes 3] [--machines 3] [--seconds 5] [--cpus 2]

Machines are network namespaces of this one, each with a Ray node; the command runs on the first. Without a job, one on
a synthetic log is made. For each pace the job runs undisturbed (`--plain` times: only sync is reproducible), then once
with each cut, made in its second day:

- short: between the machines of the two processes `--between` names, mended after `--seconds`
- pair: between these two, for good; both still reach everybody else
- node: the machine of the second reaches nobody any more, for good

Told: what the command said, the account, AUC against the undisturbed runs, the time to go on, and the longest time in
which no update was made. Exits with 1 if an account does not close or an AUC is further than 0.001 away.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from namespaces import NEEDED, Network, allowed

TOLERANCE = 0.001
_PORT = 6379
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # nobody else reaches these machines

# Asks a run's shards for their version, again and again, and writes down when it rose.
_FOLLOW = """
import json, sys, time
from pathlib import Path
from paceline.errors import ClusterLost
from paceline.exchange.pulse import asked
from paceline.exchange.security import Security
newest = -1
while True:
    time.sleep(0.1)
    try:
        processes = json.loads((Path(sys.argv[1]) / "processes.json").read_text())
    except OSError:
        continue
    for name, told in processes.items():
        if name == "coordinator" or told["address"] is None:
            continue
        version = (asked(Security(), told["address"], "statistics", patience=0.5) or {}).get("version", -1)
        if version != newest:
            newest = version
            print(time.time(), version, flush=True)
        break
"""


class RayNodes:
    """A Ray node on each machine of a network."""

    def __init__(self, network: Network, folder: Path, cpus: int) -> None:
        self._network, self._folder, self._cpus = network, folder, cpus
        self.address = f"{network.addresses[0]}:{_PORT}"

    def start(self) -> None:
        """Return when all are there."""
        for machine, address in enumerate(self._network.addresses):
            head = ["--head", f"--port={_PORT}", "--include-dashboard=false", f"--temp-dir={self._folder}/ray"]
            where = head if machine == 0 else [f"--address={self.address}"]
            ray = str(Path(sys.executable).with_name("ray"))
            options = [f"--node-ip-address={address}", f"--num-cpus={self._cpus}", "--object-store-memory=80000000"]
            command = self._network.inside(machine, ray, "start", *where, *options, "--disable-usage-stats")
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_RAY})
            if done.returncode:
                sys.exit(f"ray start on machine {machine}: {done.stdout}{done.stderr}")


def make_job(folder: Path, rows: int, nodes: int) -> Path:
    """A job on a synthetic log of few ids, soon learned: what is left between runs of one pace is the cut's."""
    from paceline.data.synth import SynthSpec
    from paceline.data.synth_write import write_log

    log = folder / "log"
    write_log(SynthSpec(rows=rows, days=3, seed=1, layout="criteo", vocabulary=500), log)
    values = {
        "data": {"format": "criteo", "days": str(log / "day_*.tsv.gz")},
        "model": {"name": "deepfm", "dim": 8, "hidden": [32, 16]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adam", "lr": 0.001}},
        "batch": {"global": 128 * nodes, "local": 128},
        "checkpoint": {"every": 20_000},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextlib.contextmanager
def following(network: Network, run: Path) -> Iterator[Path]:
    """While a run goes on: the file with the moments of its updates."""
    path = run.with_suffix(".updates")
    with open(path, "w") as out:
        process = subprocess.Popen(network.inside(0, sys.executable, "-c", _FOLLOW, str(run)), stdout=out)
        try:
            yield path
        finally:
            process.kill()
            process.wait()


def standstill(path: Path, since: float) -> float:
    """The longest time without an update after `since`."""
    moments = [float(line.split()[0]) for line in path.read_text().splitlines() if len(line.split()) == 2]
    moments = [since, *(moment for moment in moments if moment > since)]
    return max((b - a for a, b in itertools.pairwise(moments)), default=0.0)


def machine_of(network: Network, run: Path, name: str) -> int:
    """Where a process runs."""
    address = json.loads((run / "processes.json").read_text())[name]["address"]
    return network.addresses.index(address.split(":")[0])


def apart(network: Network, run: Path, between: list[str]) -> list[str]:
    """The two processes, the first of them replaced by another if Ray has placed both on one machine."""
    machines = {name: machine_of(network, run, name) for name in ("coordinator", "node-0", *between)}
    if machines[between[0]] != machines[between[1]]:
        return between
    return [next(name for name, machine in machines.items() if machine != machines[between[1]]), between[1]]


def train(network: Network, command: list[str], run: Path, cut: str, between: list[str], seconds: float,
          limit: float) -> dict[str, Any]:  # fmt: skip
    """What came of a run with a cut ("" for none)."""
    told: dict[str, Any] = {"cut": cut, "standstill_s": 0.0, "where": ""}
    log = run.with_suffix(".log")
    with following(network, run) as updates, open(log, "w") as out:
        started, at, mended = time.time(), None, cut != "short"
        line = [*network.inside(0, *command), "--run-dir", str(run)]
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **_RAY})
        pair: list[int] = []
        while process.poll() is None:
            time.sleep(0.05)
            metrics = run / "metrics.jsonl"
            if cut and at is None and metrics.exists() and metrics.read_text().count("\n") >= 1:
                time.sleep(2)  # its second day goes on
                between = apart(network, run, between)
                pair = [machine_of(network, run, name) for name in between]
                if cut == "node":
                    network.isolate(pair[1])
                else:
                    network.cut(*pair)
                at = time.time()
                told["where"] = f"{between[0]} on machine {pair[0]}, {between[1]} on machine {pair[1]}, "
                told["where"] += f"coordinator on machine {machine_of(network, run, 'coordinator')}"
            if at is not None and not mended and time.time() - at > seconds:
                network.mend(*pair)
                mended = True
            if time.time() - started > limit:
                process.kill()
                process.wait()
                told["failed"] = f"it did not end within {limit:g} seconds"
        told["seconds"] = time.time() - started
    if at is not None:
        told["standstill_s"] = standstill(updates, at)
    told["said"] = [text for text in log.read_text().splitlines() if text.strip()]
    if "failed" not in told and process.returncode:
        told["failed"] = f"exit code {process.returncode}"
    if "failed" not in told:
        told["end"] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return told


def report(pace: str, told: dict[str, Any], before: float) -> bool:
    """Print a line on a run; whether all was well."""
    for text in told["said"]:
        if any(word in text for word in ("cannot", "silent", "lost", "going on", "waiting", "died", "again", "gave")):
            print(f"    | {text}")
    if "failed" in told:
        print(f"{pace}, {told['cut']}: {told['failed']}\n    " + "\n    ".join(told["said"][-8:]), flush=True)
        return False
    end = told["end"]
    closes = end["samples_read"] == end["samples_applied"] + end["samples_dropped"]
    account = f"{end['samples_read']:,} = {end['samples_applied']:,} + {end['samples_dropped']:,}"
    print(
        f"{pace}, {told['cut'] or 'undisturbed'}: {account}; AUC {end['auc']:.5f} ({end['auc'] - before:+.5f});"
        f" {end['recoveries']} recoveries, {end['recovery_s']:.1f} s in all; longest without an update"
        f" {told['standstill_s']:.1f} s; {told['seconds']:.0f} s in all; {told['where']}",
        flush=True,
    )
    return closes and abs(end["auc"] - before) <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--paces", default="sync,gba,async")
    parser.add_argument("--cuts", default="short,pair,node")
    parser.add_argument("--plain", type=int, default=2, help="undisturbed runs, with whose mean AUC to compare")
    parser.add_argument("--between", default="node-1,node-2", help="two processes, as processes.json names them")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2, help="of each machine, that Ray may give to processes")
    parser.add_argument("--seconds", type=float, default=5, help="that a short cut lasts")
    parser.add_argument("--rows", type=int, default=240_000, help="of the log that is made where no job is given")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a run is given up")
    options = parser.parse_args()
    if not allowed():
        sys.exit(NEEDED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the machines are taken away then, too
    well = True
    with tempfile.TemporaryDirectory(prefix="pl") as name:
        folder = Path(name)
        job = options.job if options.job and "=" not in options.job else None
        overrides = [o for o in (options.job, *options.overrides) if o and "=" in o]
        path = Path(job) if job else make_job(folder, options.rows, options.nodes)
        for pace in options.paces.split(","):
            aucs: list[float] = []
            for turn, cut in enumerate([*[""] * options.plain, *options.cuts.split(",")]):
                with Network(options.machines) as network:  # a machine that Ray has given up does not come back
                    ray = RayNodes(network, folder / f"{pace}-{turn}", options.cpus)
                    ray.start()
                    command = [sys.executable, "-m", "paceline", "train", str(path), *overrides, f"pace={pace}"]
                    command += [f"cluster.address={ray.address}", f"cluster.nodes={options.nodes}"]
                    run = folder / f"run-{pace}-{turn}"
                    told = train(network, command, run, cut, options.between.split(","), options.seconds, options.limit)
                if not cut:
                    if "end" not in told:
                        sys.exit(f"{pace}, undisturbed: {told['failed']}\n" + "\n".join(told["said"]))
                    aucs.append(told["end"]["auc"])
                well = (report(pace, told, statistics.mean(aucs)) or not cut) and well
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
