"""Operators are additive over shards, and every model learns."""

import numpy as np
import pytest
import torch

from paceline.errors import ConfigError
from paceline.models.base import Inputs
from paceline.models.operators import FactorTerm, FieldSum, FirstProjection, LinearTerm
from paceline.models.registry import MODELS, build_model


@pytest.mark.parametrize(
    ("operator", "width"),
    [(LinearTerm(), 1), (FactorTerm(), 4), (FieldSum(), 4), (FirstProjection(6, 4, 8), 4)],
    ids=lambda x: type(x).__name__,
)
def test_partials_of_shards_add_up(operator, width):
    """Rows spread over 1 to 4 shards, zero where a shard holds none: finish(sum of partials) is the operator."""
    torch.manual_seed(0)
    rows = torch.randn(10, 6, width, dtype=torch.float64)
    operator = operator.double()
    whole = operator(rows)
    for shards in range(1, 5):
        owner = torch.randint(shards, (10, 6, 1))
        partials = [operator.partial(rows * (owner == shard)) for shard in range(shards)]
        torch.testing.assert_close(operator.finish(sum(partials)), whole, rtol=1e-12, atol=1e-12)


def test_the_factor_term_is_the_sum_over_pairs():
    rows = torch.randn(3, 5, 4, dtype=torch.float64)
    pairs = sum((rows[:, i] * rows[:, j]).sum(1) for i in range(5) for j in range(i))
    torch.testing.assert_close(FactorTerm()(rows), pairs)


@pytest.mark.parametrize("shape", [(64, 26, 16), (5, 3, 7), (1, 1, 1), (3, 1, 33), (0, 4, 2)])
def test_the_factor_terms_kernels_are_its_formula_there_and_back(shape):
    """Against double precision, by torch's own arithmetic; rows need not be contiguous."""
    torch.manual_seed(0)
    rows = torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2).requires_grad_()
    exact = rows.detach().double().requires_grad_()
    upstream = torch.randn(shape[0])
    out, wanted = FactorTerm()(rows), FactorTerm()(exact)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=1e-4)
    out.backward(upstream)
    wanted.backward(upstream.double())
    torch.testing.assert_close(rows.grad, exact.grad.float(), rtol=1e-5, atol=1e-5)


def test_the_factor_term_of_several_models_at_once_is_that_of_each():
    rows = torch.randn(3, 8, 5, 4, requires_grad=True)
    at_once = torch.func.vmap(FactorTerm())(rows)
    (gradient,) = torch.autograd.grad(at_once.square().sum(), rows)
    for k in range(3):
        own = rows[k].detach().requires_grad_()
        out = FactorTerm()(own)
        torch.testing.assert_close(out, at_once[k], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), own)[0], gradient[k], rtol=1e-5, atol=1e-5)


OPTIONS = {
    "lr": {},
    "fm": {"dim": 4},
    "wide_deep": {"dim": 4, "hidden": [16, 8]},
    "deepfm": {"dim": 4, "hidden": [16, 8]},
    "dcn_v2": {"dim": 4, "hidden": [16], "cross_layers": 2, "rank": 8},
    "dlrm": {"dim": 4, "hidden": [16], "bottom": [8]},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dense", [0, 6])
def test_every_model_learns_a_planted_rule(name, dense):
    """The label is a function of two ids (and a number): the loss falls well below that of a constant."""
    torch.manual_seed(0)
    fields, ids = ("a", "b", "c"), 5
    model = build_model(name, OPTIONS[name], Inputs(fields, dense))
    parts = model.parts()
    tables = {p.name: torch.nn.Parameter(torch.randn(3 * ids, p.width) * (p.std or 0.01)) for p in parts}
    index = torch.randint(ids, (512, 3)) + torch.arange(3) * ids
    numbers = torch.randn(512, dense)
    labels = ((index[:, 0] + index[:, 1]) % ids < 2).float() if name != "lr" else (index[:, 0] < 2).float()
    optimizer = torch.optim.Adam([*model.parameters(), *tables.values()], lr=0.03)
    for _ in range(300):
        logits = model({p.name: tables[p.name][index] for p in parts}, numbers)
        assert logits.shape == (512,)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_dense_inputs_reach_the_logit():
    for name in MODELS:
        torch.manual_seed(1)
        model = build_model(name, OPTIONS[name], Inputs(("a",), 2))
        rows = {p.name: torch.ones(4, 1, p.width) for p in model.parts()}
        numbers = torch.randn(4, 2)
        assert not torch.equal(model(rows, numbers), model(rows, torch.zeros(4, 2))), name


def test_unknown_names_and_options_say_what_is_known():
    with pytest.raises(ConfigError, match=r"model\.name: no model is called 'deepfn'; did you mean 'deepfm'"):
        build_model("deepfn", {}, Inputs(("a",), 0))
    with pytest.raises(ConfigError, match=r"model\.hiden: deepfm has no such option; did you mean 'hidden'"):
        build_model("deepfm", {"hiden": [4]}, Inputs(("a",), 0))
    with pytest.raises(ConfigError, match=r"model\.dim: 0 must be"):
        build_model("fm", {"dim": 0}, Inputs(("a",), 0))


def test_the_same_seed_gives_the_same_dense_parameters():
    def flat():
        torch.manual_seed(5)
        model = build_model("dcn_v2", OPTIONS["dcn_v2"], Inputs(("a", "b"), 2))
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()

    np.testing.assert_array_equal(flat(), flat())


@pytest.mark.parametrize("shape", [(64, 27, 16), (5, 3, 4), (1, 2, 1), (0, 4, 3)])
def test_pair_products_are_their_formula_there_and_back(shape):
    """Against double precision, by torch's own arithmetic; vectors need not be contiguous."""
    torch.manual_seed(0)
    model = build_model("dlrm", {"dim": shape[2], "hidden": [4]}, Inputs(tuple(map(str, range(shape[1]))), 0))
    vectors = torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2).requires_grad_()
    exact = vectors.detach().double().requires_grad_()
    out, wanted = model.products(vectors), model.products(exact)
    pairs = [(i, j) for i in range(shape[1]) for j in range(i + 1, shape[1])]
    assert out.shape == (shape[0], len(pairs))
    for p, (i, j) in enumerate(pairs[:5]):
        torch.testing.assert_close(wanted[:, p], (exact[:, i] * exact[:, j]).sum(1))
    torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=1e-5)
    upstream = torch.randn(out.shape)
    out.backward(upstream)
    wanted.backward(upstream.double())
    torch.testing.assert_close(vectors.grad, exact.grad.float(), rtol=1e-5, atol=1e-5)


def test_pair_products_of_several_models_at_once_are_those_of_each():
    model = build_model("dlrm", {"dim": 4, "hidden": [4]}, Inputs(tuple("abcde"), 0))
    vectors = torch.randn(3, 8, 5, 4, requires_grad=True)
    at_once = torch.func.vmap(model.products)(vectors)
    (gradient,) = torch.autograd.grad(at_once.square().sum(), vectors)
    for k in range(3):
        own = vectors[k].detach().requires_grad_()
        out = model.products(own)
        torch.testing.assert_close(out, at_once[k], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), own)[0], gradient[k], rtol=1e-5, atol=1e-5)
