"""Predictions: exact where a cluster is even, as the simulator has it where it is not; the note's invariant 5."""

import pytest
from tools import job, synthetic

from paceline.clusterspec import ClusterSpec
from paceline.config import PaceConfig
from paceline.pace.pilot import modelled
from paceline.planning.check import simulated
from paceline.planning.facts import BatchFact, Candidate, DataFacts
from paceline.planning.figures import figures
from paceline.planning.formulas import servers_needed, speed_up
from paceline.planning.measure import measure_data
from paceline.planning.predict import predict, windows
from paceline.planning.queueing import waiting
from paceline.runtimes.virtual_cluster import Speeds

DATA = DataFacts((BatchFact(100, 500, 250, 10_000.0), BatchFact(400, 2000, 500, 20_000.0)), 2500, {1: 1.0}, 0.0)
NOTHING = {"latency_ms": 0, "bandwidth_gbps": 1e9}
FREE = {"network": NOTHING, "allreduce": NOTHING, "servers": {"ms_per_mb": 0}}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("planning"), rows=9000, days=2)


def cluster(workers=1, **more):
    return ClusterSpec.model_validate({"workers": workers, **FREE, **more})


def candidate(workers, local, pace="sync", global_=400, servers=1, **options):
    return Candidate(workers, local, global_, PaceConfig(name=pace, **options), None if pace == "sync" else servers)


def even(fixed_ms=0.0, per_sample_us=0.0):
    return {"compute": {"fixed_ms": fixed_ms, "per_sample_us": per_sample_us}}


def test_bytes_and_distinct_ids_lie_on_a_power_law():
    assert DATA.distinct(100) == 250
    assert DATA.distinct(200) == pytest.approx(250 * 2**0.5)
    assert DATA.distinct(1600) == pytest.approx(1000), "beyond the last size the slope goes on"
    assert DATA.bytes(100, collective=True) == 10_000
    assert DATA.bytes(100, collective=False) == 20_000


def test_a_round_of_collectives_by_hand():
    """4 workers, 1 ms a collective, 10 kB rows at 8 Mbit/s = 10 ms, dense 10 kB: the ring takes 1 + 15 ms."""
    spec = cluster(**even(fixed_ms=50)) .model_copy(update={"allreduce": ClusterSpec.model_validate(
        {"workers": 1, "allreduce": {"latency_ms": 1, "bandwidth_gbps": 0.008}}).allreduce})  # fmt: skip
    made = predict(candidate(4, 100), spec, DATA)
    assert made.samples_per_s == pytest.approx(400 / (0.050 + 2 * 0.011 + 0.016))
    assert made.step == pytest.approx(
        {"compute": 0.05, "transfer": 0.022, "servers": 0, "waiting": 0, "update": 0.016}, abs=1e-9
    )
    twice = predict(candidate(2, 100), spec, DATA)  # each worker has two gradients of a round
    assert twice.samples_per_s == pytest.approx(400 / (2 * 0.072 + 0.001 + 0.010))


def test_push_and_pull_by_hand():
    """20 kB at 8 Mbit/s = 20 ms each way, 3 latencies of 2 ms, and servers of 1 s a megabyte: two visits of 20 ms."""
    spec = cluster(network={"latency_ms": 2, "bandwidth_gbps": 0.008}, servers={"ms_per_mb": 1000}, **even(fixed_ms=50))
    alone = predict(candidate(1, 100, "async"), spec, DATA)
    assert alone.samples_per_s == pytest.approx(100 / (0.050 + 0.006 + 0.040 + 0.040))
    crowd = predict(candidate(100, 100, "async", global_=10_000), spec, DATA)
    assert crowd.samples_per_s == pytest.approx(crowd.capacity, rel=0.01)
    assert crowd.capacity == pytest.approx(100 / 0.040)
    more = predict(candidate(100, 100, "async", global_=10_000, servers=4), spec, DATA)
    assert more.capacity == pytest.approx(4 * crowd.capacity)


@pytest.mark.parametrize("customers", [1, 2, 5, 20, 100])
def test_the_queue_lies_between_its_limits(customers):
    away, service = 1.0, 0.1
    response = waiting([away] * customers, service, 1)
    rate = customers / (away + response)
    assert rate <= 1.01 * min(1 / service, customers / (away + service)), "an approximation: half a percent above"
    assert rate >= customers / (away + service * customers), "at worst all others are before one"
    if customers == 1:
        assert response == pytest.approx(service)
    if customers == 100:
        assert rate == pytest.approx(1 / service, rel=0.01)
    assert waiting([away] * customers, 0.0, 2) == 0


def test_times_are_drawn_from_the_cluster_as_it_is_described():
    spec = cluster(8, compute={"fixed_ms": 10, "per_sample_us": 0}, stragglers={"share": 0.25, "factor": 4})
    [times] = windows(spec, 100, PaceConfig(name="sync").build(8))
    assert sorted(times) == [[0.01]] * 6 + [[0.04]] * 2
    slow = [own == [0.04] for own in times]
    assert slow == Speeds(spec).slow.tolist(), "the same workers as in a simulation"
    made = predict(candidate(8, 100, global_=800), spec, DATA)
    assert made.samples_per_s == pytest.approx(800 / 0.04)
    assert modelled(PaceConfig(name="async").build(8), times) == pytest.approx(6 / 0.01 + 2 / 0.04)


def test_slow_spells_count_by_the_time_that_they_last():
    spells = {"kind": "bursts", "factor": 5, "slow_s": 100, "fast_s": 300}
    spec = cluster(1, compute={"fixed_ms": 10, "per_sample_us": 0}, stragglers=spells)
    made = predict(candidate(40, 100, "async", global_=4000), spec, DATA)
    assert made.samples_per_s == pytest.approx(40 * 100 / 0.01 * (0.75 + 0.25 / 5), rel=0.05)


def test_gradients_of_a_very_slow_worker_come_too_late():
    spec = cluster(1, compute={"fixed_ms": 10, "per_sample_us": 0}, stragglers={"share": 0.1, "factor": 9})
    made = predict(candidate(10, 100, "gba", global_=1000), spec, DATA)
    whole = 9 / 0.01 + 1 / 0.09
    assert made.late == pytest.approx(1 / 0.09 / whole, rel=1e-6), "all of that one's, and no others"
    assert made.samples_per_s == pytest.approx(100 * 9 / 0.01)
    patient = predict(candidate(10, 100, "gba", global_=1000, max_staleness=None), spec, DATA)
    assert patient.late == 0
    assert patient.samples_per_s == pytest.approx(100 * whole)


def test_workers_that_are_away_do_not_count():
    spec = cluster(failures={"mtbf_s": 300, "return_s": 100}, **even(fixed_ms=10))
    made = predict(candidate(1, 400), spec, DATA)
    assert made.samples_per_s == pytest.approx(400 / 0.01 * 0.75, rel=1e-3)


def test_invariant_5_workers(log):
    """Strong scaling in the simulator is formula 3.2, with the same T_C and T_O, within 2 %."""
    allreduce = {"latency_ms": 1, "bandwidth_gbps": 1e9}
    spec = cluster(**even(per_sample_us=400)).model_copy(
        update={"allreduce": ClusterSpec.model_validate({"workers": 1, "allreduce": allreduce}).allreduce}
    )
    compute, overhead = 128 * 400e-6, 3e-3  # two exchanges and a sum, of 1 ms each, from two workers on
    alone = 128 / (compute + overhead)
    for workers in (2, 4, 8):
        found = simulated(job(log), log, candidate(workers, 128 // workers, global_=128), spec, 4000)
        assert found.samples_per_s / alone == pytest.approx(speed_up(workers, overhead / compute), rel=0.02)


def test_invariant_5_servers(log):
    """The knee lies where formula 3.3 has it: with as many servers as it asks for they are idle part of the time, with
    fewer they are the limit, N B_ps / (2 S_p), within 2 %."""
    config = job(log)
    data = measure_data(config, log, [16], [1])
    size, ms_per_mb = data.bytes(16, False), 300.0
    bandwidth = 1e9 / ms_per_mb
    compute = 2 * size * 8 / (bandwidth * 3.5)  # 3.5 servers for 8 workers
    needed = servers_needed(size, 8, bandwidth, compute)
    assert needed == 4
    for count in (1, 2, 3, 4, 8):
        spec = cluster(servers={"ms_per_mb": ms_per_mb}, **even(fixed_ms=1e3 * compute))
        found = simulated(config, log, candidate(8, 16, "async", global_=128, servers=count), spec, 4000)
        limit = 16 * count * bandwidth / (2 * size)
        free = 8 * 16 / (compute + 2 * size / (bandwidth * count))
        if count <= 2:
            assert found.samples_per_s == pytest.approx(limit, rel=0.02)
        else:
            assert found.samples_per_s < 1.02 * min(limit, free)
        if count == 8:
            assert found.samples_per_s == pytest.approx(free, rel=0.05)


CLUSTERS = {
    "jitter": {"compute": {"fixed_ms": 5, "per_sample_us": 100, "jitter_sigma": 0.2, "speed_sigma": 0.1}},
    "network": {
        "compute": {"fixed_ms": 5, "per_sample_us": 100, "jitter_sigma": 0.1},
        "network": {"latency_ms": 2, "bandwidth_gbps": 0.2},
        "allreduce": {"latency_ms": 2, "bandwidth_gbps": 0.2},
    },
    "servers": {"compute": {"fixed_ms": 2, "per_sample_us": 50, "jitter_sigma": 0.2}, "servers": {"ms_per_mb": 100}},
}


@pytest.fixture(scope="module")
def data(log):
    return measure_data(job(log), log, [16, 32, 128], [1])


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("pace", ["sync", "gba", "async", "bulk_synchronous"])
@pytest.mark.parametrize("workers", [1, 4, 8])
def test_predicted_is_within_15_percent_of_simulated(log, data, name, pace, workers):
    spec = ClusterSpec.model_validate({"workers": 8, **CLUSTERS[name]})
    config = job(log)
    chosen = candidate(workers, 128 // max(workers, 4), pace, global_=128, servers=2)
    found = simulated(config, log, chosen, spec, 6000)
    assert predict(chosen, spec, data).samples_per_s == pytest.approx(found.samples_per_s, rel=0.15)


def test_figures_are_the_formulas_with_the_predictions_numbers():
    spec = cluster(4, allreduce={"latency_ms": 1, "bandwidth_gbps": 1e9}, **even(per_sample_us=400))
    chosen, alone = predict(candidate(4, 100), spec, DATA), predict(candidate(1, 400), spec, DATA)
    found = figures(chosen, alone, spec, DATA)
    assert found["T_C_s"] == pytest.approx(0.16)
    assert found["T_O_s"] == pytest.approx(0.003, rel=1e-3)
    assert found["speed_up_by_formula"] == pytest.approx(speed_up(4, 0.003 / 0.16), rel=1e-3)
    assert found["barrier_costs"] == 1
    assert found["servers_needed"] is None, "collectives have none"
