"""Snapshots that are taken while workers push at full speed are of one version, whatever is asked of them."""

import itertools
import json
import sys
import threading

import numpy as np
import pytest
import torch
from tools import assert_same_state, interrupt_at, job, snapshot_of, state_of, synthetic, train

from paceline import checkpoint
from paceline import pace as p
from paceline.assembly import sparse_optimizer
from paceline.exchange.direct import DirectRoute
from paceline.keeper import Keeper
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.shard import Gradient, Shard
from paceline.params.table import Table

WIDTH, SNAPSHOTS = 2, 50


def fresh(sparse):
    """Rows that start at 0; sgd with rate 1 on gradients of 1: everything is a count of updates, exactly."""
    module = torch.nn.Linear(8, 3)
    block = DenseBlock(module, make_optimizer("sgd", {"lr": 1.0, "momentum": 0.5}, module))
    block.flat.zero_()
    return Shard(Table(np.zeros(WIDTH, np.float32), sparse_optimizer(sparse, {"lr": 1.0}), 0), block, "global_mean")


def ids_of(number):
    """A large table first, then a window that moves on: most rows change no more, however far apart snapshots are."""
    if number == 1:
        return np.arange(3000) * 7 + 1
    return np.unique(np.random.default_rng(number).integers(number // 8, number // 8 + 60, 40)) * 7 + 1


class Training:
    """Workers at full speed. ledger[v - 1]: the gradient that made version v."""

    def __init__(self, sparse, workers):
        self.shard = fresh(sparse)
        self.route, self.deciding = DirectRoute(self.shard), threading.Lock()
        self.ledger, self.stop, self.started = [], threading.Event(), 0
        self.threads = [threading.Thread(target=self.work) for _ in range(workers)]

    def work(self):
        flat = torch.empty_like(self.shard.dense.flat)
        while not self.stop.is_set():
            with self.deciding:
                self.started += 1
                number = self.started
            pulled = self.route.pull(ids_of(number), flat)
            ones = np.ones((len(pulled.numbers), WIDTH), np.float32)
            self.route.push(number, Gradient(torch.ones_like(flat), pulled.numbers, ones))
            with self.deciding:
                version = len(self.ledger) + 1
                self.route.apply(p.Apply(version, (p.Part(number, 1.0, 1.0, version - 1),), None, version))
                self.ledger.append(number)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


class Replay:
    """Count by count, what the ledger's first updates make of the parameters: nothing more and nothing less."""

    def __init__(self, sparse, ledger):
        self.ledger, self.version = ledger, 0
        self.counts, self.last = {}, {}
        self.momentum, self.weight = np.float32(0), np.float32(0)
        self.rows = {"weights": [np.float32(0)], "slots": [np.float32(1e-6)]}  # one row's life
        for _ in range(len(ledger)):
            square = self.rows["slots"][-1] + np.float32(1)
            step = np.float32(1) if sparse == "sgd" else np.float32(1) / (np.sqrt(square) + np.float32(1e-10))
            self.rows["slots"].append(square)
            self.rows["weights"].append(self.rows["weights"][-1] - step)

    def forward(self, version):
        for number in range(self.version + 1, version + 1):
            for key in ids_of(self.ledger[number - 1]).tolist():
                self.counts[key], self.last[key] = self.counts.get(key, 0) + 1, number
            self.momentum = np.float32(1) if number == 1 else np.float32(0.5) * self.momentum + np.float32(1)
            self.weight -= self.momentum
        self.version = version

    def check(self, shard, state):
        version = shard.version
        self.forward(version)
        assert state["version"] == state["updates"] == version
        assert state["last"] == (self.ledger[version - 1] if version else None)
        found = set()
        for block in shard.table.blocks():
            n = np.array([self.counts.get(key, 0) for key in block.ids.tolist()])
            np.testing.assert_array_equal(block.clocks[:, 1], n)
            np.testing.assert_array_equal(block.clocks[:, 0], [self.last.get(key, 0) for key in block.ids.tolist()])
            for name, values in (("weights", block.weights), ("slots", block.slots)):
                expected = np.array(self.rows[name])[n]
                np.testing.assert_array_equal(values, np.repeat(expected[:, None], values.shape[1], axis=1))
            found |= set(block.ids.tolist())
        assert found >= self.counts.keys()  # besides, rows that were pulled and not updated yet
        assert (shard.dense.flat == float(self.weight)).all()
        tensors = shard.dense.slots()[0]
        assert len(tensors) == (2 if version else 0)
        assert all((tensor == float(self.momentum)).all() for tensor in tensors.values())


@pytest.mark.parametrize("sparse", ["sgd", "adagrad"])
def test_fifty_snapshots_under_full_speed_are_of_one_version_each(tmp_path, sparse):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    taken = []
    try:
        with Training(sparse, 3) as training:
            keeper = Keeper(tmp_path, SNAPSHOTS, training.route)
            while len(taken) < SNAPSHOTS:
                with training.deciding:
                    ledger = training.ledger
                    if taken and len(ledger) == taken[-1]:
                        continue
                    state = {"updates": len(ledger), "last": ledger[-1] if ledger else None}
                    copy = keeper.take()
                keeper.write(copy, state, -1, None)
                taken.append(copy.version)
                keeper.wait()  # the workers go on meanwhile
    finally:
        sys.setswitchinterval(interval)
        keeper.close()
    stored = sorted(path for path in tmp_path.glob("[0-9]*"))
    assert [int(path.name) for path in stored] == taken
    assert len(set(taken)) == SNAPSHOTS
    replay, files = Replay(sparse, training.ledger), []
    for path in stored:
        restored, found = fresh(sparse), checkpoint.read(path)
        checkpoint.restore(found, restored)
        assert f"{restored.version:09d}" == path.name
        replay.check(restored, found.state)
        files.append(len(found.pieces[0].rows))
    assert max(files) > 2, "increments were under test"
    checkpoint.load(tmp_path, fresh(sparse))


def after(word, line):
    return [value for key, value in itertools.pairwise(line) if key == word]


@pytest.mark.parametrize("pace", ["async", "gba"])
def test_snapshots_of_a_run_agree_with_its_trace(tmp_path, pace):
    """Rows, dense parameters, account and cursor of every checkpoint are those of the trace up to the moment."""
    log = synthetic(tmp_path / "log", rows=9000)
    changes = {"pace__name": pace, "batch__local": 16, "batch__global": 32, "workers": 4}
    config = job(log, **changes, checkpoint={"every": 100, "keep": 1000})
    train(config, log, tmp_path / "run")
    trace = (tmp_path / "run" / "pace.trace").read_bytes()
    found = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert len(found) >= 10
    seen = {}
    for path in found:
        rows, dense, state = snapshot_of(path)
        lines = trace[: state["trace_bytes"]].decode().splitlines()
        applied = [line.split() for line in lines if line.startswith("< apply")]
        version = int(path.name)
        assert version == len(applied) == state["version"] == state["machine"]["version"]
        assert state["machine"]["account"]["updates"] == version
        assert state["machine"]["account"]["applied"] == int(applied[-1][applied[-1].index("samples") + 1])
        # An update whose gradients all came too late is none for the dense optimizer (gba.md, section 4); a row that
        # nobody else changed may still take its gradient.
        steps = [int(line[2]) for line in applied if any(f != "0.0" for f in after("factor", line))]
        assert steps[-1] <= rows["last_update"].max() <= version
        assert dense["linear.bias/step"] == len(steps)  # torch's own count of steps
        # Rows only ever go forward, and one that did not has not changed.
        for key, last, weights in zip(rows["id"].tolist(), rows["last_update"], rows["weights"], strict=True):
            before = seen.get(key)
            assert before is None or last >= before[0]
            assert before is None or last > before[0] or (weights == before[1]).all()
            seen[key] = last, weights
        assert len(seen) == len(rows["id"])


def test_background_checkpoints_change_nothing(tmp_path, monkeypatch):
    log = synthetic(tmp_path / "log")
    for name, every in (("never", 10**9), ("often", 130)):
        train(job(log, checkpoint__every=every), log, tmp_path / name)
    assert_same_state(tmp_path / "never", tmp_path / "often")
    interrupt_at(monkeypatch, 2700)
    with pytest.raises(KeyboardInterrupt, match="everything until here is kept"):
        train(job(log, checkpoint__every=130), log, tmp_path / "cut")
    assert state_of(tmp_path / "cut")[2]["machine"]["account"]["applied"] >= 2300
    train(job(log, checkpoint__every=130), log, tmp_path / "cut", resume=True)
    assert_same_state(tmp_path / "never", tmp_path / "cut")
    ends = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("never", "cut")]
    assert ends[0]["ids"] == ends[1]["ids"]
