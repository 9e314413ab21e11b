"""What workers hold back of their gradients survives the death of a process of a real run."""

import json

import torch
from raynodes import job_file, start
from safetensors.torch import load_file
from tools import synthetic

from paceline import checkpoint

ROWS = 12_000


def test_a_shard_dies_and_workers_go_on_with_what_they_held(tmp_path):
    """Steps of collectives, from the second day on push and pull: each asks the workers at every snapshot."""
    log, run = synthetic(tmp_path / "log", rows=ROWS), tmp_path / "run"
    changes = {
        "cluster": {"address": "local", "nodes": 2},
        "compress": {"gradients": {"keep": 0.05}, "activations": {"keep": 0.5}, "refresh": 50},
        "checkpoint": {"every": 1000},
        "switch": [{"at": "day_1", "pace": "gba"}],
        "inject": [{"kill": "shard-1", "at": 6000}],
    }
    with start(job_file(tmp_path, log, "local", **changes), run) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "node-1 is killed" in said
    assert "did not tell within" not in said
    end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["samples_read"] == ROWS == end["samples_applied"] + end["samples_dropped"]
    assert end["recoveries"] == 1
    assert 0 < end["bytes_measured"]["dense_gradients"] < 0.3 * end["bytes_measured"]["dense"]
    newest = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    tensors = load_file(newest / checkpoint.STATISTICS)
    held = {name: tensor for name, tensor in tensors.items() if name.startswith("held/")}
    assert set(held) == {"held/worker-0", "held/worker-1"}
    for tensor in held.values():
        steps = tensor[-1]
        assert steps > 100, "more gradients than since the recovery: it went on from the snapshot"
        assert bool(torch.isfinite(tensor).all())
