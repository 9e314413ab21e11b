"""Models that compute on a device of their own: the CPU as such a device gives the same bits, in every route."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from parties import locally, on_cluster, party
from tools import job, synthetic

from paceline import assembly
from paceline.errors import ConfigError
from paceline.exchange.group import connect, open_store
from paceline.runtimes.device import DeviceCopy, find_device


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


@contextlib.contextmanager
def copies(monkeypatch):
    """Every model computes by a copy of it, as it would on a GPU; the copies."""
    made = []
    plain = assembly.make_replica

    def make(config, *where):
        replica = plain(config, *where)
        made.append(DeviceCopy(replica.model, torch.device("cpu")))
        replica.compute_on(made[-1])
        return replica

    with monkeypatch.context() as patched:
        patched.setattr(assembly, "make_replica", make)
        yield made


def assert_same(ours, theirs):
    assert ours[0].keys() == theirs[0].keys()
    for key, values in ours[0].items():
        assert (values == theirs[0][key]).all()
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bf16"}, {"normalise": "local_moving"}, {"model": "dlrm"}, {"pace": "gba"}],
)
def test_a_copy_trains_bitwise_as_the_model_itself(log, monkeypatch, changes):
    config = job(log, workers=1, **changes)  # statistics belong to a worker, and gba to the order of arrival
    expected = locally(config, log)
    with copies(monkeypatch) as made:
        assert_same(locally(config, log), expected)
    assert made
    assert not torch.equal(made[0].parameters[0], torch.zeros(())), "it has the parameters of the last batch"


@pytest.mark.parametrize("exchange", ["rows", "substitute"])
def test_a_copy_takes_rows_and_partial_sums_of_collectives(log, monkeypatch, exchange):
    config = job(log)
    with party(config, nodes=2, steps=True, exchange=exchange) as made:
        expected = on_cluster(config, log, made)
    with copies(monkeypatch), party(config, nodes=2, steps=True, exchange=exchange) as made:
        assert_same(on_cluster(config, log, made), expected)


def test_a_gpu_is_taken_where_one_is_reserved():
    assert find_device("auto", reserved=False) == find_device("cpu", reserved=True) == torch.device("cpu")
    if torch.cuda.is_available():
        assert find_device("auto", reserved=True).type == "cuda"
    else:
        with pytest.raises(ConfigError, match=r"device: 'cuda' cannot be used.*resources\.gpus: 0"):
            find_device("auto", reserved=True)


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match=f"device: '{name}'.*set device: cpu"):
        find_device(name, reserved=False)


def test_without_a_gpu_for_each_rank_a_group_goes_by_gloo():
    store = open_store()
    gpus = [torch.device("cuda"), None]
    with ThreadPoolExecutor(2) as pool:
        groups = list(pool.map(lambda r: connect("127.0.0.1", store.port, "g", r, 2, gpu=gpus[r]), range(2)))

        def swap(group):
            mine = {"x": dict.fromkeys(range(2), torch.tensor([float(group.rank)]))}
            return group.swap(mine, {"x": {0: 1, 1: 1}})["x"]

        for came in pool.map(swap, groups):
            assert came == {0: torch.tensor([0.0]), 1: torch.tensor([1.0])}
