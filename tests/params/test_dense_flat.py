"""One Adagrad step of the flat vector against torch's, parameter by parameter: the same bits."""

import pytest
import torch
from torch import nn

from paceline.params.dense import DenseBlock, make_optimizer
from paceline.params.dense_flat import FlatAdagrad
from paceline.params.sparse import Clock


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(29, 17), nn.Linear(17, 3), nn.Linear(3, 1, bias=False))


def gradients(count):
    generator = torch.Generator().manual_seed(5)
    length = sum(p.numel() for p in model().parameters())
    for _ in range(count):
        yield torch.randn(length, generator=generator) * 10 ** (-6 * torch.rand(length, generator=generator))


def by_parameter(options, count):
    module = model()
    optimizer = torch.optim.Adagrad(module.parameters(), **options)
    for gradient in gradients(count):
        start = 0
        for p in module.parameters():
            p.grad = gradient[start : start + p.numel()].view_as(p)
            start += p.numel()
        optimizer.step()
    return module, optimizer


def same(block, module, optimizer):
    for (name, weight), p in zip(block.weights().items(), module.parameters(), strict=True):
        assert torch.equal(weight, p), name
    for mine, its in zip(
        block.optimizer.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(mine["sum"], its["sum"])
        assert mine["sum"].shape == its["sum"].shape
        assert mine["step"] == its["step"]


OPTIONS = [
    {"lr": 0.02, "initial_accumulator_value": 1e-6, "fused": True},
    {"lr": 0.02, "lr_decay": 0.01},
    {"lr": 0.02, "foreach": True, "eps": 1e-3},
    {"lr": 0.02, "maximize": True, "fused": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_bits_also_after_a_restore(options):
    module = model()
    block = DenseBlock(module, make_optimizer("adagrad", options, module))
    assert FlatAdagrad.fits(block.optimizer, list(module.parameters()))
    for number, gradient in enumerate(gradients(40), 1):
        block.apply(gradient, Clock(number, number))
        if number == 20:
            weights, (tensors, rest) = block.weights(), block.slots()
            module = model()
            block = DenseBlock(module, make_optimizer("adagrad", options, module))
            block.load(weights, tensors, rest)
    assert all(p.grad is None for p in module.parameters()), "the slow way was taken"
    same(block, *by_parameter(options, 40))


def test_a_part_of_the_step_is_of_the_same_step():
    module = model()
    block = DenseBlock(module, make_optimizer("adagrad", {"lr": 0.5}, module))
    before = block.flat.clone()
    (gradient,) = gradients(1)
    block.apply(gradient, Clock(1, 1), 0.25)
    whole, _ = by_parameter({"lr": 0.5}, 1)
    expected = torch.cat([p.detach().reshape(-1) for p in whole.parameters()])
    torch.testing.assert_close(block.flat - before, (expected - before) * 0.25, rtol=1e-5, atol=1e-8)


def test_other_optimizers_go_their_own_way():
    for name, options in (("adam", {}), ("sgd", {"lr": 0.1}), ("adagrad", {"weight_decay": 0.1})):
        module = model()
        assert not FlatAdagrad.fits(make_optimizer(name, options, module), list(module.parameters()))
    module = model()
    block = DenseBlock(module, make_optimizer("adagrad", {"lr": 0.5}, module))
    first = next(module.parameters())
    block.optimizer.state[first]["step"] += 1  # no step of ours: the parameters are not as one any more
    block.apply(next(gradients(1)), Clock(1, 1))
    assert float(block.optimizer.state[first]["step"]) == 2
    assert first.grad is not None
