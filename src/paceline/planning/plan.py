"""Making a plan: measure, predict every candidate, let the simulator check the best three, choose, say why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paceline.assembly import assemble
from paceline.clusterfile import load_times
from paceline.clusterspec import ClusterSpec
from paceline.config import JobConfig
from paceline.errors import ConfigError
from paceline.planning import candidates as c
from paceline.planning.check import Check, simulated
from paceline.planning.exchange import Exchange, exchange
from paceline.planning.facts import Candidate, DataFacts, MachineFacts, plain
from paceline.planning.figures import figures
from paceline.planning.measure import measure_data, measure_machine
from paceline.planning.predict import Prediction, on, predict
from paceline.planning.twin import twin
from paceline.runtimes.virtual_cluster import Doubles

NEAR = 0.02  # nearly as fast as the fastest: then what is simpler is chosen
AGREES = 0.15  # within which predicted and simulated throughput are said to agree
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Options:
    """servers: the most there may be (None: the cluster's); paces: names (none: sync, GBA and the job's own); globals:
    LOW:HIGH of global batches, None for the job's own; memory: of a worker in bytes; seconds: of measuring; rows: that
    the simulator trains for each check, at least (20 updates if that is more); checks: candidates it looks at."""

    servers: int | None = None
    paces: Sequence[str] = ()
    globals: str | None = None
    memory: float | None = None
    seconds: float = 60.0
    rows: int = 100_000
    checks: int = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan with its inputs, so that it can be held against the run. ranking: all predictions, the fastest first;
    checks: of some of them, by place in the ranking; chosen: place in the ranking; spec: of the chosen; ground: what
    was planned for, "cluster" or "machine"."""

    config: JobConfig
    ground: str
    spec: ClusterSpec
    data: DataFacts
    machine: MachineFacts | None
    ranking: tuple[Prediction, ...]
    checks: dict[int, Check]
    chosen: int
    exchange: Exchange
    figures: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def choice(self) -> Prediction:
        return self.ranking[self.chosen]

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was chosen, what was promised, and everything that it rests on."""
        ranked = []
        for place, prediction in enumerate(self.ranking):
            check = self.checks.get(place)
            if check is not None or place < _SHOWN:
                ranked.append({**prediction.to_json(), "simulated": None if check is None else check.samples_per_s})
        return {
            "ground": self.ground,
            "choice": {**self.choice.to_json(), "exchange_key": self.exchange.key, "modes": self.exchange.modes},
            "figures": self.figures,
            "ranking": ranked,
            "candidates": len(self.ranking),
            "notes": self.notes,
            "inputs": {
                "data": plain(self.data),
                "machine": None if self.machine is None else plain(self.machine),
                "cluster": self.spec.model_dump(mode="json"),
            },
        }


@dataclass(frozen=True, slots=True)
class Described:
    """A cluster.yaml; recorded: the times that it names."""

    cluster: ClusterSpec
    recorded: list[Doubles] | None = None
    name: str = "cluster"

    def spec(self, candidate: Candidate) -> ClusterSpec:
        return on(self.cluster, candidate)

    def most(self) -> float:
        """Samples per second beyond which nothing goes, whatever the candidate."""
        return float("inf")


@dataclass(frozen=True, slots=True)
class Here:
    """This machine's cores, with threads."""

    machine: MachineFacts
    data: DataFacts
    recorded: None = None
    name: str = "machine"

    def spec(self, candidate: Candidate) -> ClusterSpec:
        return twin(self.machine, self.data, candidate)

    def most(self) -> float:
        return self.machine.read_rate


Ground = Described | Here


def make_plan(
    config: JobConfig,
    base: Path,
    cluster: ClusterSpec | None,
    cluster_base: Path,
    options: Options,
    cores: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan the job. cluster: what is to be had (workers: the most), None for this machine with `cores` cores; tell: of
    what is being done. Raises a PacelineError for everything that can be foreseen."""
    most = cores if cluster is None else cluster.workers
    servers = 1 if cluster is None else options.servers or cluster.servers.count
    recorded = None if cluster is None else load_times(cluster, cluster_base)
    choices = c.paces(config, options.paces)
    every = list(c.candidates(c.global_batches(config, options.globals), most, servers, choices))
    sizes = sorted({candidate.local for candidate in every})
    tell(f"{len(every)} candidates; looking at the data in batches of {sizes[0]:,} to {sizes[-1]:,} samples")
    few = sorted({sizes[round(k * (len(sizes) - 1) / 4)] for k in range(5)})
    data = measure_data(config, base, few, [*c.server_counts(servers), *c.worker_counts(most)])
    every = [candidate for candidate in every if c.fits(candidate, data, options.memory)]
    if not every:
        raise ConfigError(
            f"no candidate fits into {options.memory or 0:,.0f} bytes of memory: a sample's gradient keeps"
            f" {data.activations:,.0f} and the dense parameters take {12 * data.dense:,}; give --memory-gb more, or a"
            " smaller model or batch.global"
        )
    notes: list[str] = []
    machine = None
    if cluster is None or cluster.compute.measure:
        tell(f"measuring this machine for about {options.seconds:.0f} seconds")
        machine = measure_machine(config, base, c.measured_sizes(sizes), options.seconds)
    ground: Ground
    if cluster is None:
        assert machine is not None
        ground = Here(machine, data)
    else:
        if machine is not None:
            cluster = _timed(cluster, machine, notes)
        _warn(cluster, recorded is not None, notes)
        ground = Described(cluster, recorded)
    if config.switch:
        notes.append("job.yaml switches the pace (switch): the plan is for the pace that it begins with")
    tell(f"predicting {len(every)} candidates")
    ranking = tuple(ranked(every, ground, data))
    places = to_check(ranking, options.checks)
    checks: dict[int, Check] = {}
    for place in places:
        candidate = ranking[place].candidate
        tell(f"simulating {describe(candidate)}")
        rows = max(options.rows, 20 * candidate.global_)
        check = simulated(config, base, candidate, ground.spec(candidate), rows, recorded)
        if check is not None:  # a simulation reads in no time
            checks[place] = replace(check, samples_per_s=min(check.samples_per_s, ground.most()))
    if not checks:
        notes.append("the log is too short for the simulator to check anything: predictions only")
    chosen = choose(ranking, checks)
    prediction = ranking[chosen]
    spec = ground.spec(prediction.candidate)
    one = Candidate(1, prediction.candidate.global_, prediction.candidate.global_, prediction.candidate.pace,
                    prediction.candidate.servers)  # fmt: skip
    alone = next(iter(ranked([one], ground, data)))
    link = spec.allreduce.bandwidth_gbps
    how = exchange(prediction.candidate, assemble(config, base, 1), data, 8 / (link * 1e9), options.memory)
    told = figures(prediction, alone, spec, data)
    return Plan(config, ground.name, spec, data, machine, ranking, checks, chosen, how, told, notes)


def ranked(every: Sequence[Candidate], ground: Ground, data: DataFacts) -> list[Prediction]:
    """Predictions, the fastest first."""
    found = []
    for candidate in every:
        made = predict(candidate, ground.spec(candidate), data, ground.recorded)
        found.append(replace(made, samples_per_s=min(made.samples_per_s, ground.most())))
    return sorted(found, key=lambda made: -made.samples_per_s)


def simplicity(candidate: Candidate) -> tuple[int, int, int, int]:
    """What is simpler comes first: fewer workers, a barrier (nothing is stale), fewer servers, larger local batches."""
    return (candidate.workers, not candidate.collective, candidate.servers or 0, -candidate.local)


def to_check(ranking: Sequence[Prediction], count: int) -> list[int]:
    """Places of those that the simulator is to look at: the fastest, the simplest of those that are nearly as fast, the
    fastest at another pace; then whatever comes next."""
    near = [place for place, made in enumerate(ranking) if made.samples_per_s >= (1 - NEAR) * ranking[0].samples_per_s]
    simplest = min(near, key=lambda place: simplicity(ranking[place].candidate))
    pace = ranking[0].candidate.pace.name
    other = next((place for place, made in enumerate(ranking) if made.candidate.pace.name != pace), 0)
    wanted = dict.fromkeys([0, simplest, other, *range(len(ranking))])
    return list(wanted)[:count]


def choose(ranking: Sequence[Prediction], checks: dict[int, Check]) -> int:
    """The simplest of those that are nearly as fast as the fastest: by the simulator's word if it has spoken."""
    rates = {place: check.samples_per_s for place, check in checks.items()}
    if not rates:
        rates = {place: made.samples_per_s for place, made in enumerate(ranking)}
    best = max(rates.values())
    near = [place for place, rate in rates.items() if rate >= (1 - NEAR) * best]
    return min(near, key=lambda place: simplicity(ranking[place].candidate))


def describe(candidate: Candidate) -> str:
    """A candidate in a few words."""
    servers = "" if candidate.servers is None else f", {candidate.servers} server{'s' * (candidate.servers > 1)}"
    return (
        f"{candidate.workers} worker{'s' * (candidate.workers > 1)}, local batch {candidate.local:,} of"
        f" {candidate.global_:,}, {candidate.pace.name}{servers}"
    )


def _timed(cluster: ClusterSpec, machine: MachineFacts, notes: list[str]) -> ClusterSpec:
    """The cluster with this machine's computing times, at three sizes of batch."""
    fixed, slope, off = machine.line()
    if off > AGREES:
        notes.append(
            f"computing times at {', '.join(str(t.samples) for t in machine.timings)} samples are up to {off:.0%} off a"
            " straight line, which is what cluster.yaml can say"
        )
    measured = {"fixed_ms": 1e3 * fixed, "per_sample_us": 1e6 * slope, "measure": False}
    return cluster.model_copy(update={"compute": cluster.compute.model_copy(update=measured)})


def _warn(cluster: ClusterSpec, recorded: bool, notes: list[str]) -> None:
    """Tell of what a plan cannot know. Raises ConfigError where computing takes no time at all."""
    if not (recorded or cluster.compute.fixed_ms or cluster.compute.per_sample_us):
        raise ConfigError(
            "compute.fixed_ms and compute.per_sample_us are 0: a plan needs to know what a gradient takes; give them,"
            " or compute.measure: true"
        )
    if cluster.failures.mtbf_s is not None and cluster.failures.return_s is None:
        notes.append("failures.return_s is null: lost workers stay away, and the plan is for the time before that")
    if cluster.stragglers.spells is not None:
        slow, fast = cluster.stragglers.spells
        notes.append(
            f"slow spells come every {slow + fast:,.4g} s: predictions are means over many, the simulator's check sees"
            " those of its own short time"
        )
