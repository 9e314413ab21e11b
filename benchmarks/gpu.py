"""Host tables with the dense part on a GPU, beside plain PyTorch on the same card, and what bounds them.

    python -m benchmarks.gpu [--device cuda] [--ids 1000000] [--rounds 5] [--json FILE]

DeepFM, 4096 samples an update, exact Adagrad, fp32, samples in host memory. In turns, medians of the rounds:

- paceline: tables in host memory, two workers under GBA whose dense part is on the card;
- plain PyTorch, all on the card: the table must fit there; what a host table could at best keep up with;
- plain PyTorch, its table in host memory, its dense part on the card;
- what bounds paceline: its rows alone on the host (one thread), a step's rows there and their gradients back over the
  bus, and the dense part alone on the card.

`--device cpu` runs the same without a card, to see that it works: its ratios then say nothing of GPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.systems.networks import WIDTH, network
from benchmarks.systems.worker import EPS, LR, STD, Cycle
from benchmarks.tables import BATCH, STEPS, THREADS, Bench, batches, field_sizes
from torch import Tensor, nn

from paceline.batch import Batch
from paceline.runtimes.local import settle_thread


class Plain:
    """A PyTorch user's loop. Ids are numbers below the table's size already; nothing is hashed or looked up."""

    def __init__(self, ids: int, given: list[Batch], device: torch.device, table_device: torch.device) -> None:
        self.device, self.table_device = device, table_device
        offsets = torch.tensor([0, *field_sizes(ids)[:-1]]).cumsum(0)
        sizes = torch.tensor(field_sizes(ids))
        self.given = Cycle(
            [
                # Any number will do for an id, as long as equal ids stay equal: the hashes fold into the field's range.
                (offsets + torch.from_numpy(b.ids) % sizes, *map(torch.from_numpy, (b.dense[:, ::2].copy(), b.labels)))
                for b in given
            ]
        )
        self.table = nn.Embedding(ids, WIDTH["deepfm"], sparse=True, device=table_device)
        with torch.no_grad():
            self.table.weight.normal_(std=STD)
        self.net = network("deepfm").to(device)
        self.optimizers = [torch.optim.Adagrad(m.parameters(), lr=LR, eps=EPS) for m in (self.table, self.net)]

    def train(self) -> None:
        for ids, numbers, labels in self.given.take(STEPS):
            rows = self.table(ids.to(self.table_device)).to(self.device)
            logits = self.net(rows, numbers.to(self.device))
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logits, labels.to(self.device)).backward()
            for optimizer in self.optimizers:
                optimizer.step()


def bus(device: torch.device) -> Callable[[], None]:
    """A step's rows to the card and as many numbers back."""
    here = torch.randn(BATCH, len(field_sizes(1)), WIDTH["deepfm"])

    def move() -> None:
        for _ in range(STEPS):
            there: Tensor = here.to(device)
            there.cpu()

    return move


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, host = torch.device(options.device), torch.device("cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu runs the same without one")
    settle_thread()
    bench = Bench("fp32", "adagrad", options.device)
    bench.grow(options.ids)
    ours = bench.measures()
    given = batches(options.ids, False, BATCH, STEPS)
    card, mixed = Plain(options.ids, given, device, device), Plain(options.ids, given, device, host)
    parts: dict[str, Callable[[], Any]] = {
        "paceline, host table": ours["training"],
        "plain PyTorch, all on the card": card.train,
        "plain PyTorch, host table": mixed.train,
        "rows alone, one thread": ours["rows"],
        "rows over the bus and back": bus(device),
        "dense part alone": ours["dense part"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, work in parts.items():
            torch.set_num_threads(THREADS if name.startswith("plain") else 1)
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - started) / STEPS)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"\n{name}, {options.ids:,} ids, {BATCH} samples a step, medians of {options.rounds} rounds\n")
    print("| | ms a step | samples/s | of plain PyTorch, host table |\n|---|---|---|---|")
    base = statistics.median(seconds["plain PyTorch, host table"])
    for each, values in seconds.items():
        median = statistics.median(values)
        print(f"| {each} | {1e3 * median:.2f} | {BATCH / median:,.0f} | {base / median:.2f} |")
    if options.json:
        found = {"device": name, "ids": options.ids, "seconds": seconds}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
