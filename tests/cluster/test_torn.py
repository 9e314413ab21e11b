"""Snapshots of several shards behind Arrow Flight, taken while workers push at full speed, are of one version each.

The run is the coordinator's own (`Chief`: reading, pace machine, trace, cursor, `ClusterKeeper`), the shards are those
of `Node`. Which updates a version consists of is in the trace; the pace machine is run through it again, and each
update made in one process. Since the model's gradients do not depend on its parameters, that has to be what every
snapshot holds, to the bit.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
from tools import job, synthetic

from paceline import checkpoint
from paceline import pace as p
from paceline.assembly import day_files, make_log, make_replica, make_shard
from paceline.cluster import chief as chief_module
from paceline.cluster.chief import Chief
from paceline.cluster.keeper import ClusterKeeper
from paceline.cluster.node import Node
from paceline.cluster.spec import NodeSpec, roles
from paceline.data.stream import FIRST, Plan, day_batches
from paceline.exchange.direct import DirectRoute
from paceline.exchange.far import FarShards
from paceline.exchange.security import Security
from paceline.pace.state import from_json
from paceline.pace.trace import read_event
from paceline.params.dense import slice_sizes
from paceline.runtimes.local import settle_thread

SNAPSHOTS = 50  # while workers push
NODES, SERVERS, HELPERS = 2, 1, 1
SECURITY = Security()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"), rows=30_000)


def start_nodes(config, nodes, servers=0, helpers=0):
    """(nodes, addresses of those that hold a shard)."""
    values, shards = config.to_yaml(), nodes + servers
    made = [Node(NodeSpec(name, values, shards, *numbers)) for name, *numbers in roles(nodes, servers, helpers)]
    return made, [address for address in (node.start()[0] for node in made) if address is not None]


def run_until_stored(config, base, run, monkeypatch):
    """Train with a snapshot whenever the one before is written, until SNAPSHOTS were ordered in the middle of days."""
    chief = Chief(config.to_yaml(), str(base), str(run), SECURITY)
    ordered = []

    class Counting(ClusterKeeper):
        def take(self):
            ordered.append(self._store.version)
            if len(set(ordered)) == SNAPSHOTS + 10:  # those at the ends of days count for nothing here
                chief.interrupt()
            return super().take()

    monkeypatch.setattr(chief_module, "ClusterKeeper", Counting)
    office, _ = chief.start()
    nodes, addresses = start_nodes(config, NODES, SERVERS, HELPERS)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for node in nodes:
            node.begin(1, addresses, office)
        came, told = chief.run(1, addresses, False, (0, 0.0, None), NODES + HELPERS)
    finally:
        sys.setswitchinterval(interval)
        for node in nodes:
            node.end()
        chief._office.shutdown()
    assert came == "interrupted", told


class Replay:
    """What the trace makes of one shard in this process, update by update."""

    def __init__(self, config, base, trace):
        self.config, self.lines, self.at = config, trace.splitlines(keepends=True), 0
        self.route, self.replica = DirectRoute(make_shard(config)), make_replica(config)
        self.machine, self.batches, self.read = None, {}, 0
        source = make_log(config)
        self.source = chain.from_iterable(
            day_batches(source, files, Plan(day, config.local_batch))
            for day, files in enumerate(day_files(config, base))
        )
        self.last = None

    def forward(self, size):
        """Up to byte `size` of the trace."""
        while self.read < size:
            line = self.lines[self.at].decode()
            self.read += len(self.lines[self.at])
            self.at += 1
            if line.startswith("="):
                self.machine = from_json(json.loads(line[2:]))
            elif line.startswith(">"):
                self.step(read_event(line))
        assert self.read == size

    def step(self, event):
        if isinstance(event, p.BatchRead):
            self.last = self.batches[self.machine.next_batch] = next(self.source)
            assert self.last.samples == event.samples
        for command in p.step(self.machine, event):
            if isinstance(command, p.Apply):
                for part in command.parts:
                    batch = self.batches.pop(part.gradient)
                    pulled = self.route.pull(batch.flat_ids(), self.replica.flat)
                    self.route.push(part.gradient, self.replica.gradient(batch, pulled)[1])
                self.route.apply(command)
            elif isinstance(command, p.Drop):
                del self.batches[command.gradient]


def rows_of(shards):
    """Ids, weights, slots and clocks of every row that was updated, in the order of ids; those that were only pulled
    have to be as they began."""
    blocks = [block for shard in shards for block in shard.table.blocks()]
    found = [
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("ids", "weights", "slots", "clocks")
    ]
    order = np.argsort(found[0])
    ids, weights, slots, clocks = (values[order] for values in found)
    assert len(np.unique(ids)) == len(ids)
    updated = clocks[:, 1] > 0
    fresh = shards[0].table
    np.testing.assert_array_equal(weights[~updated], fresh.pull(np.full((~updated).sum(), -1), ids[~updated]))
    return ids[updated], weights[updated], slots[updated], clocks[updated]


def dense_of(shards):
    """Dense parameters and their optimizer's tensors, by name."""
    found = {}
    for shard in shards:
        tensors = shard.dense.weights() | shard.dense.slots()[0]
        assert not tensors.keys() & found.keys()
        found |= {name: tensor.numpy() for name, tensor in tensors.items()}
    return found


def assert_is(shards, replay):
    """Rows, slots, clocks, dense parameters and optimizer state of all shards are those of the trace, to the bit."""
    expected = replay.route.shard
    assert {shard.version for shard in shards} == {expected.version}
    for ours, theirs in zip(rows_of(shards), rows_of([expected]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = dense_of(shards), dense_of([expected])
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def assert_cursor(state, replay):
    """What is read again is what the version lacks of what was read; then it goes on where reading had come to."""
    machine = replay.machine
    assert state["version"] == state["machine"]["version"] == machine.version == replay.route.version
    assert state["again"] == [replay.batches[number].span.to_json() for number in sorted(machine.samples)]
    account = state["machine"]["account"]
    assert account["read"] == account["applied"] + account["dropped"]
    assert account["read"] + sum(machine.samples.values()) == machine.account.read
    if state["evaluated"]:
        assert state["next"] == replay.last.following.to_json()
    else:
        assert not machine.samples
        assert state["day"] == replay.last.span.day + 1
        assert state["next"]["rows"] == [FIRST.file, FIRST.row] * 2


def restore_all(config, base, run):
    """Every snapshot into real shards, by turns as many as wrote it and fewer; how many were taken amid pushes."""
    three, two = start_nodes(config, NODES + SERVERS), start_nodes(config, 2)
    replay = Replay(config, base, (run / "pace.trace").read_bytes())
    model, amid = replay.replica.model, 0
    try:
        for number, path in enumerate(sorted((run / "checkpoints").glob("[0-9]*"))):
            nodes, addresses = (three, two)[number % 2]
            sizes = slice_sizes(model, len(nodes))
            assert all(sizes), "every shard has dense parameters, which every update changes"
            store = FarShards(SECURITY, addresses, number + 1, sizes, replay.replica.layout.width)
            store.connect(str(path))
            store.close()
            state = checkpoint.read(path).state
            replay.forward(state["trace_bytes"])
            assert_is([node._desk.home.shard for node in nodes], replay)
            assert_cursor(state, replay)
            amid += bool(state["again"])
    finally:
        for node in (*three[0], *two[0]):
            node.end()
    return amid


@pytest.mark.parametrize("pace", ["async", "gba"])
def test_fifty_snapshots_of_three_shards_are_of_one_version_each(tmp_path, log, monkeypatch, pace):
    cluster = {"nodes": NODES, "servers": SERVERS, "workers": HELPERS}
    data = {"format": "criteo", "days": [str(log / f"day_{i % 3}.tsv.gz") for i in range(1000)]}
    batch = {"local": 8, "global": 16}
    config = job(
        log, data=data, model={"name": "steady:Steady"}, pace__name=pace, batch=batch, workers=NODES + HELPERS,
        cluster=cluster, evaluate="none", checkpoint={"every": 1, "keep": 10_000},
    )  # fmt: skip
    run_until_stored(config, tmp_path, tmp_path / "run", monkeypatch)
    with ThreadPoolExecutor(1, initializer=settle_thread) as pool:  # numbers as workers have them
        assert pool.submit(restore_all, config, tmp_path, tmp_path / "run").result() >= SNAPSHOTS
