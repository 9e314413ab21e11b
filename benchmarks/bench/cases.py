"""What is measured: the cases, and the systems of each. A case's systems run in turns, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["ours", "peer", "limit"]


@dataclass(frozen=True)
class System:
    """env: the peer's environment, "" for paceline's own; module: of benchmarks.systems; variant: see there."""

    name: str
    module: str
    env: str = ""
    variant: str = ""
    role: Role = "peer"


@dataclass(frozen=True)
class Case:
    """bench: its name in results; ids: in all tables together, None where there are none; step: samples in a step, of
    the data or (None) of the whole file."""

    bench: str
    model: str
    precision: str | None
    optimizer: str | None
    ids: int | None
    systems: tuple[System, ...]

    @property
    def title(self) -> str:
        parts = [self.bench, self.precision, self.optimizer, None if self.ids is None else f"{self.ids:,} ids"]
        return ", ".join(part for part in parts if part)


M = 1_000_000


def ours(name: str, variant: str) -> System:
    return System(f"paceline {name}", "paceline", variant=variant, role="ours")


MEMORY = (ours("sync", "sync"), ours("gba", "gba"), ours("async", "async"))
FILES = (ours("gba, from .tsv.gz", "gba tsv.gz"), ours("gba, from .parquet", "gba parquet"))
LIMIT = (System("dense part alone", "paceline", variant="dense", role="limit"),)
PLAIN = System("plain PyTorch", "plain_torch")
FUSED = (System("FBGEMM", "fbgemm", "torchrec"), System("TorchRec", "fbgemm", "torchrec", "torchrec"))
LIBRARIES = (System("DeepCTR-Torch", "deepctr_torch", "deepctr_torch"), System("FuxiCTR", "fuxictr", "fuxictr"))
PEERS = (PLAIN, *FUSED, *LIBRARIES)
READERS = (
    System("paceline, to batches of ids", "reading", variant="paceline", role="ours"),
    System("polars, to columns", "reading", variant="polars"),
    System("pyarrow, to columns", "reading", variant="pyarrow"),
)


def training(model: str, precision: str, optimizer: str, ids: int, files: bool = False, quick: bool = False) -> Case:
    """quick: without TorchRec, whose kernels are FBGEMM's. async: only where every system's tables fit beside it."""
    deep = model in ("deepfm", "dlrm")
    memory = MEMORY[:2] if quick or ids > M else MEMORY
    peers = (PLAIN, FUSED[0], *LIBRARIES) if quick else PEERS
    systems = (*memory, *(FILES if files else ()), *peers, *(LIMIT if deep else ()))
    return Case(model, model, precision, optimizer, ids, systems)


def rows(optimizer: str, ids: int) -> Case:
    """Lookup, gather, sums per id and update of the rows, without a model."""
    return Case("rows", "rows", "fp32", optimizer, ids, (ours("rows", "rows"), PLAIN, *FUSED))


def reading(suffix: str) -> Case:
    return Case(f"read {suffix}", suffix, None, None, None, READERS)


QUICK = [
    training("deepfm", "bf16", "adagrad", M, files=True, quick=True),
    training("deepfm", "fp32", "adagrad", M, quick=True),
    training("deepfm", "bf16", "rowwise_adagrad", M, quick=True),
    training("dlrm", "bf16", "adagrad", M, quick=True),
    training("lr", "fp32", "adagrad", M, quick=True),
    training("fm", "fp32", "adagrad", M, quick=True),
    rows("adagrad", M),
    rows("rowwise_adagrad", M),
    reading("tsv.gz"),
    reading("parquet"),
]
FULL = [
    *(
        training(model, precision, optimizer, ids, files=model == "deepfm" and optimizer == "adagrad" and ids == M)
        for model in ("deepfm", "dlrm")
        for ids in (M, 10 * M)
        for precision in ("bf16", "fp32")
        for optimizer in ("adagrad", "rowwise_adagrad")
    ),
    *(training(model, "fp32", "adagrad", ids) for model in ("lr", "fm") for ids in (M, 10 * M)),
    *(rows(optimizer, ids) for optimizer in ("adagrad", "rowwise_adagrad") for ids in (M, 10 * M)),
    reading("tsv.gz"),
    reading("parquet"),
]


def without_bf16(suite: list[Case]) -> list[Case]:
    """The suite in fp32, for a processor on which bf16 takes many times as long: each case once, with most systems."""
    plain = [replace(case, precision="fp32") if case.precision == "bf16" else case for case in suite]
    kept: dict[str, Case] = {}
    for case in sorted(plain, key=lambda case: len(case.systems)):
        kept[case.title] = case
    return [case for case in plain if case is kept[case.title]]
