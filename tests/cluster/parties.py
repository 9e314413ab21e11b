"""A cluster's parties in one process, over real Arrow Flight connections: for tests of what is said between them."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import torch

from paceline import pace as p
from paceline.assembly import assemble, make_replica
from paceline.cluster.body import ClusterBody
from paceline.cluster.node import Node
from paceline.cluster.office import Office
from paceline.cluster.spec import NodeSpec, roles
from paceline.cluster.traffic import Traffic
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.exchange.far import FarShards
from paceline.exchange.group import open_store
from paceline.exchange.security import Security
from paceline.params.dense import slice_sizes
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import LocalBody
from paceline.runtimes.statistics import Statistics


class Party:
    """Nodes, an office and the coordinator's store, generation by generation."""

    def __init__(self, config, nodes=2, servers=0, workers=0, security=None, steps=False, **options):
        self.steps = steps
        self.config, self.security = config, security or Security()
        self.shards = nodes + servers
        values = config.to_yaml()
        self.make = lambda name, shard, worker: Node(
            NodeSpec(name, values, self.shards, shard, worker, security=self.security, **options)
        )
        self.nodes = [self.make(*role) for role in roles(nodes, servers, workers)]
        self.addresses = [a for a in (node.start()[0] for node in self.nodes) if a is not None]
        self.office = Office(self.security)
        self.replica = make_replica(config)
        self.workers = nodes + workers
        self.nodes_with_both = nodes
        self.generation = 0

    def begin(self):
        """A new generation; its store."""
        self.generation += 1
        self.sizes = slice_sizes(self.replica.model, self.shards)
        width = self.replica.layout.width
        self.store = FarShards(self.security, self.addresses, self.generation, self.sizes, width)
        self.store.connect(None)
        self.traffic = Traffic(self.sizes, width, self.nodes_with_both, self.workers, 4)
        self.office.begin(self.generation, self.shards if self.steps else 0, self.addresses)
        self.meeting = open_store() if self.steps else None
        for node in self.nodes:
            self.begin_node(node)
        assert self.office.wait_for_workers(self.workers, 30)
        return self.store

    def begin_node(self, node):
        meeting = ("127.0.0.1", self.meeting.port) if self.steps else None
        node.begin(self.generation, self.addresses, f"127.0.0.1:{self.office.port}", meeting)

    def hire(self):
        """One helper more comes while the job runs; its worker."""
        worker = self.workers
        self.workers += 1
        self.nodes.append(self.make(f"helper-{worker - self.nodes_with_both}", None, worker))
        self.begin_node(self.nodes[-1])
        return f"worker-{worker}"

    def end(self):
        self.office.begin(self.generation + 1)
        self.store.close()
        for node in self.nodes:
            node.end()
        self.office.shutdown()

    def rows(self):
        """{id: weights and slots and clocks} of every shard."""
        found = {}
        for node in self.nodes:
            if node._desk is not None:
                for block in node._desk.home.shard.table.blocks():
                    values = np.concatenate([block.weights, block.slots, block.clocks], axis=1)
                    found |= dict(zip(block.ids.tolist(), values, strict=True))
        return found

    def dense(self):
        return torch.cat([n._desk.home.shard.dense.flat for n in self.nodes if n._desk is not None])


@contextlib.contextmanager
def party(config, **options):
    made = Party(config, **options)
    try:
        made.begin()
        yield made
    finally:
        made.end()


def train_days(
    config,
    base,
    store,
    body_of,
    pace=None,
    before_day=lambda day, coordinator: None,
    trace=lambda line: None,
    before_read=lambda coordinator: None,
    watch=lambda coordinator: None,
    through=lambda batches: batches,
):
    """Every day of the job on `store`; the coordinator."""
    job = assemble(config, base, store=store) if store is not None else assemble(config, base)
    statistics = Statistics(job.replicas[0].statistics)
    body = body_of(job, statistics)
    machine = p.begin(pace or config.pace.build(config.gradients))
    found = []

    def read(_):
        before_read(found[0])

    coordinator = Coordinator(machine, job.route, trace, statistics=statistics, before_read=read)
    found.append(coordinator)
    moments = no_moments(len(job.schema.dense))
    for day, files in enumerate(job.days):
        before_day(day, coordinator)
        plan = Plan(day, config.local_batch, moments=moments)
        with contextlib.closing(day_batches(job.source, files, plan)) as source:
            body.run_day(coordinator, through(source), lambda: watch(coordinator))
        moments = coordinator.next_span.moments
        statistics.export()
    return job, coordinator


def locally(config, base, **options):
    """The same in worker threads of this process: ({id: row}, dense, coordinator)."""
    found = []

    def body():
        job, coordinator = train_days(
            config, base, None, lambda job, statistics: LocalBody(job.direct, job.replicas, statistics), **options
        )
        rows = {}
        for block in job.shard.table.blocks():
            values = np.concatenate([block.weights, block.slots, block.clocks], axis=1)
            rows |= dict(zip(block.ids.tolist(), values, strict=True))
        found.append((rows, job.shard.dense.flat.clone(), coordinator))

    thread = threading.Thread(target=body)  # thread settings stay there
    thread.start()
    thread.join()
    return found[0]


def on_cluster(config, base, made, **options):
    """(rows, dense, coordinator) of the job trained by a party."""

    def body_of(job, statistics):
        return ClusterBody(made.office, made.store, statistics, made.traffic, made.workers)

    _, coordinator = train_days(config, base, made.store, body_of, **options)
    return made.rows(), made.dense(), coordinator
