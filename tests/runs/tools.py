"""Small jobs for tests of whole runs."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from paceline import checkpoint
from paceline.data.synth import SynthSpec
from paceline.data.synth_write import write_log
from paceline.jobfile import check
from paceline.training import train


def synthetic(folder: Path, rows: int = 6000, days: int = 3, layout: str = "criteo") -> Path:
    """A small synthetic log; the same for every test."""
    if not (folder / "truth.json").exists():
        write_log(SynthSpec(rows=rows, days=days, seed=1, layout=layout, vocabulary=20_000), folder)
    return folder


def job(folder: Path, **changes):
    """A configuration on the log in `folder`. `pace__name="gba"` reaches nested keys."""
    values = {
        "data": {"format": "criteo", "days": str(folder / "day_*.tsv.gz")},
        "model": {"name": "deepfm", "dim": 4, "hidden": [16, 8]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.05}, "dense": {"name": "adam", "lr": 0.003}},
        "batch": {"global": 128, "local": 32},
        "pace": {"name": "sync"},
        "workers": 2,
        "checkpoint": {"every": 1000},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return check(values, "test")


def state_of(run: Path):
    """(rows by id, dense tensors, state) of a run's newest checkpoint, in an order that does not matter."""
    return snapshot_of(sorted((run / "checkpoints").glob("[0-9]*"))[-1])


def snapshot_of(path: Path):
    """The same of one checkpoint, read as the documentation says (docs/checkpoints.md)."""
    import json

    import pyarrow as pa
    from safetensors.numpy import load_file

    pieces = json.loads((path / "manifest.json").read_text())["pieces"]
    folder, tables = path.parent / "pieces", []
    for file in (file for piece in pieces for file in piece["rows"]):
        with pa.memory_map(str(folder / file["name"])) as source:
            tables.append(pa.ipc.open_file(source).read_all())
        assert tables[-1].num_rows == file["rows"]
    table = pa.concat_tables(tables)
    ids = table.column("id").to_numpy()
    assert len(np.unique(ids)) == sum(piece["ids"] for piece in pieces)
    distinct, last = np.unique(ids[::-1], return_index=True)  # the last of each id, in order of ids
    order = len(ids) - 1 - last
    rows = {
        "id": distinct,
        **{name: table.column(name).combine_chunks().flatten().to_numpy().reshape(len(ids), -1)[order]
           for name in ("weights", "slots")},
        **{name: table.column(name).to_numpy()[order] for name in ("last_update", "count")},
    }  # fmt: skip
    dense = {}
    for piece in pieces:
        dense |= {**load_file(folder / piece["dense"]["name"]), **load_file(folder / piece["slots"]["name"])}
    return rows, dense, json.loads((path / "state.json").read_text())


def assert_same_state(a: Path, b: Path):
    """Bitwise equality of rows, slots, clocks, dense parameters and dense slots."""
    rows_a, dense_a, state_a = state_of(a)
    rows_b, dense_b, state_b = state_of(b)
    for name, value in rows_a.items():
        np.testing.assert_array_equal(value, rows_b[name], err_msg=name)
    assert dense_a.keys() == dense_b.keys()
    for name, value in dense_a.items():
        np.testing.assert_array_equal(value, dense_b[name], err_msg=name)
    for key in ("applied", "dropped", "read", "updates"):
        assert state_a["machine"]["account"][key] == state_b["machine"]["account"][key]


def interrupt_at(monkeypatch, rows: int) -> None:
    """The next run is interrupted, as by Ctrl-C, when about `rows` rows were read; later runs are not."""
    from paceline.data.stream import day_batches

    left = [rows]

    def interrupted(*arguments):
        for batch in day_batches(*arguments):
            if left and left[0] <= 0:
                left.clear()
                raise KeyboardInterrupt
            if left:
                left[0] -= batch.samples
            yield batch

    monkeypatch.setattr("paceline.training.day_batches", interrupted)


__all__ = ["assert_same_state", "interrupt_at", "job", "snapshot_of", "state_of", "synthetic", "train"]


def held(run):
    """{worker: what it holds back} in a run's newest checkpoint."""
    path = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    tensors = load_file(path / checkpoint.STATISTICS)
    return {name.removeprefix("held/"): tensor for name, tensor in tensors.items() if name.startswith("held/")}


def assert_same_run(a, b):
    assert_same_state(a, b)
    ours, theirs = held(a), held(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
