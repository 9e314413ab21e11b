"""Row optimizers for dense parameters, and the options of both."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors.torch
import torch
from bodies import Twin

from paceline import Clock, ConfigError
from paceline.assembly import sparse_optimizer
from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.dense_rows import FOR_DENSE, RowsOptimizer
from paceline.params.sparse import Adam
from paceline.params.swap import AdagradSWAP


def two_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))


@pytest.mark.parametrize("name", sorted(FOR_DENSE))
def test_dense_parameters_are_rows_of_their_own_bitwise(name):
    """Every parameter of a module goes as a row of its elements would, in place in the flat vector."""
    options = {"lr": 0.1, **({"period": 7, "decay": 0.5} if name.endswith("_swap") else {})}
    module = two_layers()
    block = DenseBlock(module, make_optimizer(name, options, module))
    assert isinstance(block.optimizer, RowsOptimizer)
    twins = [Twin(block.optimizer.rows, p.detach().numpy().reshape(1, -1)) for p in module.parameters()]
    address = block.flat.data_ptr()
    for number in range(1, 20):
        gradient = torch.randn(block.flat.numel())
        block.apply(gradient, Clock(number, 3 * number))
        start = 0
        for twin in twins:
            width = twin.weights.shape[1]
            twin.step(gradient[start : start + width].numpy().reshape(1, -1), Clock(number, 3 * number))
            start += width
    assert block.flat.data_ptr() == address == next(module.parameters()).data_ptr()
    np.testing.assert_array_equal(block.flat.numpy(), np.concatenate([t.weights.reshape(-1) for t in twins]))
    for (name, _), twin in zip(block.named, twins, strict=True):
        np.testing.assert_array_equal(block.slots()[0][f"{name}/slots"].numpy(), twin.slots[0])


@pytest.mark.parametrize("name", ["adagrad_swap", "adam_swap", "rmsprop_swap", "ftrl_swap", "ftrl", "adagrad_delay"])
def test_a_dense_block_goes_on_bitwise_from_a_checkpoint(tmp_path, name):
    options = {"lr": 0.1, **({"period": 10, "decay": 0.5} if name.endswith("_swap") else {})}
    gradients = [torch.randn(21, generator=torch.Generator().manual_seed(i)) for i in range(1, 21)]

    def fresh():
        module = two_layers()
        return DenseBlock(module, make_optimizer(name, options, module))

    through, first, second = fresh(), fresh(), fresh()
    for number, gradient in enumerate(gradients, 1):
        through.apply(gradient, Clock(number, 4 * number))
        if number <= 9:
            first.apply(gradient, Clock(number, 4 * number))
    tensors, rest = first.slots()
    safetensors.torch.save_file(first.weights(), tmp_path / "weights")
    safetensors.torch.save_file(tensors, tmp_path / "slots")
    loaded = [safetensors.torch.load_file(tmp_path / file) for file in ("weights", "slots")]
    assert any((tensor != 0).any() for tensor in loaded[1].values())
    second.load(*loaded, json.loads(json.dumps(rest)))
    forgetful = fresh()
    forgetful.load(loaded[0], {}, rest)
    for number, gradient in enumerate(gradients[9:], 10):
        second.apply(gradient, Clock(number, 4 * number))
        forgetful.apply(gradient, Clock(number, 4 * number))
    assert torch.equal(second.flat, through.flat)
    for key, tensor in through.slots()[0].items():
        assert torch.equal(tensor, second.slots()[0][key])
    assert not torch.equal(forgetful.flat, through.flat)


def test_a_parameter_has_a_counter_of_its_own():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = RowsOptimizer([a, b], AdagradSWAP(period=10))
    for samples in (10, 20, 30):
        optimizer.clock = Clock(samples // 10, samples)
        a.grad, b.grad = torch.ones(2), torch.ones(2) if samples == 10 else None
        optimizer.step()
    assert optimizer.state[a]["slots"][-1] == 3
    assert optimizer.state[b]["slots"][-1] == 1


def test_the_clock_is_needed():
    a = torch.nn.Parameter(torch.zeros(2))
    a.grad = torch.ones(2)
    with pytest.raises(ValueError, match="clock"):
        RowsOptimizer([a], AdagradSWAP()).step()


@pytest.mark.parametrize("name", ["adam", "sgd", "adagrad"])
def test_torchs_optimizers_step_as_ever(name):
    """Bitwise what setting the gradients by hand gives."""
    module, other = two_layers(), two_layers()
    block = DenseBlock(module, make_optimizer(name, {"lr": 0.1}, module))
    reference = make_optimizer(name, {"lr": 0.1}, other)
    for number in range(1, 10):
        gradient = torch.randn(21)
        block.apply(gradient.clone(), Clock(number, number))
        start = 0
        for p in other.parameters():
            p.grad = gradient[start : start + p.numel()].clone().view_as(p)
            start += p.numel()
        reference.step()
    assert torch.equal(block.flat, torch.cat([p.detach().reshape(-1) for p in other.parameters()]))


# --- options -------------------------------------------------------------------------------------------------------


def make_dense(name, options):
    return make_optimizer(name, options, two_layers()).rows


@pytest.mark.parametrize(("make", "key"), [(sparse_optimizer, "optimizer.sparse"), (make_dense, "optimizer.dense")])
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adagrad_swap", "decay", 0),
        ("adagrad_swap", "decay", 1e-50),  # 0 in float32
        ("adam_swap", "decay", 1.01),
        ("rmsprop_swap", "period", 0),
        ("ftrl_swap", "period", "often"),
        ("adagrad_swap", "initial", 0),
        ("adagrad_swap", "eps", 1e-8),
        ("adam_swap", "beta1", 1),
        ("adagrad_swap", "lr", 0),
        ("adagrad_swap", "eager", "maybe"),
        ("ftrl_swap", "born_current", 2),
        ("ftrl", "period", 3),
    ],
)
def test_impossible_options_are_named(make, key, name, option, value):
    with pytest.raises(ConfigError, match=rf"{key}\.{option}: ") as error:
        make(name, {option: value})
    assert str(value) in str(error.value) or f"{name} has no such option" in str(error.value)


@pytest.mark.parametrize("make", [sparse_optimizer, make_dense])
def test_options_arrive(make):
    options = {"lr": "0.5", "initial": 0.2, "decay": 1, "period": "1e6", "eager": True, "born_current": 1}
    assert make("adagrad_swap", options) == AdagradSWAP(0.5, 0.2, decay=1.0, period=1e6, eager=True, born_current=True)
    assert make("adagrad_swap", {}) == AdagradSWAP(0.02, 0.1, decay=0.8)


@dataclass(frozen=True)
class Choosy(Adam):
    """A user's row optimizer that checks what it is given."""

    def __post_init__(self):
        if self.beta1 > self.beta2:
            raise ValueError("beta1 must not be above beta2")


@pytest.mark.parametrize(("make", "key"), [(sparse_optimizer, "optimizer.sparse"), (make_dense, "optimizer.dense")])
def test_what_a_users_constructor_refuses_is_a_mistake_in_the_job(make, key, monkeypatch):
    monkeypatch.setattr("paceline.params.sparse.Choosy", Choosy, raising=False)
    assert make("paceline.params.sparse:Choosy", {"beta1": 0.5}).beta1 == 0.5
    with pytest.raises(ConfigError, match=rf"{key}: .*Choosy cannot take .*beta1 must not be above beta2"):
        make("paceline.params.sparse:Choosy", {"beta2": 0.5})


def test_names_of_dense_optimizers():
    with pytest.raises(ConfigError, match=r"optimizer\.dense\.name: .*did you mean 'adagrad_swap'"):
        make_dense("adagradswap", {})
    with pytest.raises(ConfigError, match=r"optimizer\.dense: adam cannot take"):
        make_dense("adam", {"period": 3})
    assert isinstance(make_dense("paceline.params.sparse:Adam", {"lr": 0.1}), Adam)  # a row optimizer of one's own


def test_all_parameters_go_in_one_call_unless_they_count_differently():
    options = {"lr": 0.1, "period": 7, "decay": 0.5}
    blocks = []
    for _ in range(2):
        module = two_layers()
        blocks.append(DenseBlock(module, make_optimizer("adagrad_swap", options, module)))
    flat, apart = blocks
    first = next(p for _, p in apart.named)
    apart.optimizer.slots_of(first)[-1] = 1.0  # a period ahead of the others: they are not as one any more
    for number in range(1, 6):
        gradient = torch.randn(21, generator=torch.Generator().manual_seed(number))
        for block in blocks:
            block.apply(gradient, Clock(number, 3 * number))
    assert all(p.grad is None for _, p in flat.named)
    assert all(p.grad is not None for _, p in apart.named)
    assert not torch.equal(flat.weights()[apart.named[0][0]], first), "it owed a period less"
    for name, p in apart.named[1:]:
        assert torch.equal(flat.weights()[name], p), name


def test_a_row_optimizer_of_ones_own_goes_by_parameter():
    """It may look at all elements of a parameter."""
    module = two_layers()
    block = DenseBlock(module, RowsOptimizer(module.parameters(), Adam()))
    block.apply(torch.ones(21), Clock(1, 1))
    assert all(p.grad is not None for _, p in block.named)
