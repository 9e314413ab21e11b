"""Bytes that a node sends in a step: push and pull, moved rows, and partial sums in their place (DES), measured.

    python benchmarks/exchange.py [--nodes 2 3 4] [--only curve models data long codes] [--quick] [--out FOLDER]

Every node is a process with a shard and a worker on a machine of its own (a network namespace with an interface, whose
counter is what "wire" means; needs root, else only bytes of arrays are counted). A worker's batch has 512 samples; ids
of 100,000 a field come by the power law of `paceline synth` (exponent 1.1), so many of a batch's ids came before.

- curve: LR and FM over 2, 3, 4 nodes and 10, 30, 100, 300 ids a sample: 8 fields with one id, 2 bags with the rest
- models: six models with 26 one-hot fields and 13 numbers, and with 100 ids a sample, on 2, 3, 4 nodes: is `auto` ever
  dearer than the cheapest of rows by collectives, substitution, push and pull?
- data: LR and FM with 100 ids on 4 nodes where ids repeat less (exponents 1 and 0.8), and with one bag
- long: the same two by push and pull and by substitution, 400 steps: fewer and fewer ids are new
- codes: what the dictionary of ids and the codes of positions save, and the time they take

Ways take turns on the same batches and updates; where `auto` chooses what another way is, that one stands for it.
Reported: the first step, and means over steps 21 to 30, on 4 nodes also over steps 51 to 60 and 391 to 400.
Results go to FOLDER/exchange.json; what is there already is not measured again. table.md and plot.png are made of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from exchange_codes import measure_codes
from exchange_jobs import MODELS, Job
from exchange_report import write_report
from namespaces import NEEDED, Network, allowed

WAYS = ("push_pull", "rows", "substitute", "auto")
SPANS = {"first": (0, 1), "early": (20, 30), "late": (50, 60), "long": (390, 400)}  # of steps
Result = dict[str, Any]


def jobs(what: str, nodes: int) -> list[tuple[Job, int]]:
    """(job, steps) of a part of the benchmark."""
    match what:
        case "curve":
            steps = 60 if nodes == 4 else 30
            return [(Job(model, ids, 8, 2), steps) for model in ("lr", "fm") for ids in (10, 30, 100, 300)]
        case "models":
            shapes = ((26, 26, 0), (100, 8, 2))
            done = ("lr", "fm") if nodes == 4 else ()  # in the curve, with more steps
            return [(Job(m, *s), 60 if m in done and s[2] else 30) for s in shapes for m in MODELS]
        case "data" if nodes == 4:
            less = [Job(model, 100, 8, 2, alpha) for model in ("lr", "fm") for alpha in (1.0, 0.8)]
            return [(job, 60) for job in [*less, *(Job(model, 100, 8, 1) for model in ("lr", "fm"))]]
        case "long" if nodes == 4:
            return [(Job(model, 100, 8, 2), 400) for model in ("lr", "fm")]
    return []


class Nodes:
    """Processes on machines of their own, if that is allowed here."""

    def __init__(self, network: Network | None, count: int) -> None:
        script, self._processes = str(Path(__file__).with_name("exchange_node.py")), []
        for rank in range(count):
            address = "127.0.0.1" if network is None else network.addresses[rank]
            command = [sys.executable, script, str(rank), str(count), address, "wired" if network else "shared"]
            if network is not None:
                command = network.inside(rank, *command)
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        told = self._all("hello")
        self._store, self._flights = told[0]["store"], [t["flight"] for t in told]

    def measure(self, job: Job, way: str, steps: int) -> Result:
        """Bytes of a mean node in each span of steps: by kind measured and predicted, and on the wire."""
        begun = self._all("begin", job=asdict(job), way=way, store=self._store, flights=self._flights)
        self._all("open")
        told = []
        for _ in range(steps):
            self._all("step")
            told.append(self._all("apply"))
        self._all("end")
        found: Result = {"modes": begun[0]["modes"]}
        for name, (start, stop) in SPANS.items():
            if stop <= steps:
                each = [t for at in range(start, stop) for t in told[at]]
                wire = sum(t["wire"] for t in each) / len(each)
                found[name] = {"sent": _mean(each, "sent"), "predicted": _mean(each, "predicted"), "wire": wire}
        return found

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()  # at which it ends
        for process in self._processes:
            with process:
                process.wait(30)

    def _all(self, op: str, **asked: Any) -> list[Result]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"op": op, **asked}) + "\n")
            process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    def _answer(self, process: subprocess.Popen[str]) -> Result:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("exchange: a node has ended; see above")
        found: Result = json.loads(line)
        return found


def _mean(each: list[Result], what: str) -> dict[str, float]:
    kinds = sorted({kind for told in each for kind in told[what]})
    return {kind: round(sum(told[what].get(kind, 0) for told in each) / len(each), 1) for kind in kinds}


def missing(found: list[Result], only: list[str], nodes: int, quick: bool) -> Iterator[tuple[Job, int, str]]:
    """(job, steps, way) of what has not been measured."""
    there = {(json.dumps(r["job"]), r["nodes"], r["steps"], r["way"]) for r in found}
    for what in only:
        for job, steps in jobs(what, nodes):
            steps = 1 if quick else steps
            for way in ("push_pull", "substitute") if what == "long" else WAYS:
                key = (json.dumps(asdict(job)), nodes, steps, way)
                if key not in there:
                    there.add(key)
                    yield job, steps, way


def same_as(job: Job, nodes: int, found: list[Result]) -> Result | None:
    """The result of the way that `auto` is the same as, if there is one."""
    chosen = dict(job.plan(nodes, "auto").modes)
    ours = (r for r in found if r["job"] == asdict(job) and r["nodes"] == nodes and r["way"] in ("rows", "substitute"))
    return next((r for r in ours if r["modes"] == chosen), None)


def keep(kept: Result, file: Path) -> None:
    """Write all results, one a line."""
    parts = (f'"{name}": [\n' + ",\n".join(map(json.dumps, kept[name])) + "\n]" for name in ("results", "codes"))
    file.write_text("{" + ", ".join(parts) + "}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--only", nargs="+", default=["curve", "models", "data", "long", "codes"])
    parser.add_argument("--quick", action="store_true", help="one step each: a check that it works")
    parser.add_argument("--out", type=Path, default=Path("evidence/results/exchange"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "exchange.json"
    kept: Result = json.loads(file.read_text()) if file.exists() else {"results": [], "codes": []}
    wired = allowed()
    if not wired:
        print(f"bytes of arrays only, nothing on the wire: {NEEDED}", file=sys.stderr)
    for count in options.nodes:
        todo = list(missing(kept["results"], options.only, count, options.quick))
        if not todo:
            continue
        with ExitStack() as stack:
            nodes = Nodes(stack.enter_context(Network(count)) if wired else None, count)
            stack.callback(nodes.close)
            for job, steps, way in todo:
                same = same_as(job, count, kept["results"]) if way == "auto" else None
                measured = nodes.measure(job, way, steps) if same is None else same
                result = {**measured, "job": asdict(job), "nodes": count, "steps": steps, "way": way}
                kept["results"].append(result)
                keep(kept, file)
                last = next(result[span] for span in reversed(SPANS) if span in result)
                print(f"{count} nodes, {job}, {way}: {sum(last['sent'].values()):,.0f}, wire {last['wire']:,.0f}",
                      flush=True)  # fmt: skip
    if "codes" in options.only and not kept["codes"]:
        kept["codes"] = measure_codes(3 if options.quick else 60)
        keep(kept, file)
    write_report(kept, options.out)


if __name__ == "__main__":
    main()
