"""Which operators read which part is found out for any model; totals in place of rows give the same logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paceline.models.base import Inputs, Model, Part
from paceline.models.operators import FactorTerm, FieldSum, FirstProjection, LinearTerm, SparseOperator, Totals
from paceline.models.readers import readers_of
from paceline.models.registry import MODELS, build_model


def test_the_factorisation_machine_by_hand():
    """Two shards hold ids 1 and 3, and 2; values x multiply the vectors. Logit 1.2."""
    rows = [[(1, (1.0, 2.0), 0.1), (1, (0.0, 0.0), 0.0), (1, (0.5, 0.5), -0.3)], [(2, (-1.0, 0.5), 0.2)]]
    linear, factor = LinearTerm().double(), FactorTerm()
    vectors = torch.zeros(2, 1, 3, 2, dtype=torch.float64)
    weights = torch.zeros(2, 1, 3, 1, dtype=torch.float64)
    for field, (x, v, w) in enumerate(rows[0]):
        vectors[0, 0, field], weights[0, 0, field, 0] = x * torch.tensor(v), x * w
    x, v, w = rows[1][0]
    vectors[1, 0, 1], weights[1, 0, 1, 0] = x * torch.tensor(v), x * w
    a = [linear.partial(weights[shard]).item() for shard in range(2)]
    sums = [factor.partial(vectors[shard])[0].tolist() for shard in range(2)]
    assert a == pytest.approx([-0.2, 0.4])
    assert sums[0] == pytest.approx([1.5, 2.5, -5.5 / 2])
    assert sums[1] == pytest.approx([-2.0, 1.0, -5.0 / 2])
    assert [a[s] + sums[s][-1] for s in range(2)] == pytest.approx([-2.95, -2.1])
    merged = torch.tensor([[-0.5, 3.5, -2.95 - 2.1]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    logit = linear(Totals(lambda _: zero)) + factor(Totals(lambda _: merged))
    assert logit.item() == pytest.approx(1.2)
    whole = vectors.sum(0).requires_grad_()
    (gradient,) = torch.autograd.grad(factor.finish(factor.partial(whole)).sum(), whole)
    by_value = gradient[0] * torch.tensor([[1.0], [2.0], [1.0]])
    assert by_value.tolist() == [pytest.approx(v) for v in ([-1.5, 1.5], [3.0, 5.0], [-1.0, 3.0])]


def test_the_factor_term_in_two_steps_is_that_in_one():
    torch.manual_seed(0)
    rows = torch.randn(64, 20, 16)
    term = FactorTerm()
    assert term.partial(rows).shape == (64, 17)
    torch.testing.assert_close(term.finish(term.partial(rows)), term(rows), rtol=1e-5, atol=1e-4)


def names(readers):
    return None if readers is None else [(r.name, r.numbers, r.group >= 0) for r in readers]


@pytest.mark.parametrize("normalise", ["none", "local_batch", "local_moving"])
@pytest.mark.parametrize("dense", [0, 3])
def test_readers_of_the_models_here(normalise, dense):
    found = {}
    for name in MODELS:
        options = {"dim": 4} if name != "lr" else {}
        model = build_model(name, options, Inputs(("a", "b", "c"), dense, normalise))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        seed = torch.get_rng_state()
        found[name] = readers_of(model, 3, dense)
        assert torch.equal(torch.get_rng_state(), seed)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    linear, merged, factor = [("linear", 1, False)], [("linear", 1, True)], ("factor", 5, True)
    assert names(found["lr"]["linear"]) == linear
    assert (names(found["fm"]["linear"]), names(found["fm"]["embedding"])) == (merged, [factor])
    assert names(found["wide_deep"]["embedding"]) == [("deep.first", 256, False)]
    assert names(found["wide_deep"]["linear"]) == linear
    assert names(found["deepfm"]["embedding"]) == [factor, ("deep.first", 256, False)]
    assert names(found["dcn_v2"]["embedding"]) == names(found["dlrm"]["embedding"]) == [("fields", 12, False)]
    (first,) = found["wide_deep"]["embedding"]
    assert first.parameters == 3 * 4 * 256  # its weight; the bias enters once, in finish
    assert first.splits
    assert not found["fm"]["embedding"][0].splits


class Own(Model):
    """A user's model: the linear term and an FM behind a learned factor, a tower; the third part is read directly."""

    def __init__(self, inputs: Inputs, scaled: bool) -> None:
        super().__init__()
        self.linear, self.other, self.factor = LinearTerm(), LinearTerm(), FactorTerm()
        self.scale = nn.Parameter(torch.ones(())) if scaled else None
        self.first = FirstProjection(len(inputs.fields), 4, 8)

    def parts(self):
        return Part("wide", 1), Part("vector", 4), Part("direct", 2), Part("both", 1)

    def forward(self, rows, dense):
        factor = self.factor(rows["vector"])
        logit = self.linear(rows["wide"]) + (factor if self.scale is None else self.scale * factor)
        logit = logit + torch.relu(self.first(rows["vector"])).sum(1)
        return logit + rows["direct"].prod(2).sum(1) + self.other(rows["both"]) * rows["both"].mean((1, 2))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_model_of_ones_own(scaled):
    found = readers_of(Own(Inputs(("a", "b"), 0), scaled), 2, 0)
    assert names(found["wide"]) == [("linear", 1, not scaled)]
    assert names(found["vector"]) == [("factor", 5, not scaled), ("first", 8, False)]
    assert found["direct"] is None
    assert found["both"] is None


class Squares(SparseOperator):
    """Not additive over shards: the square of a sum."""

    def partial(self, rows):
        return rows.sum((1, 2)).square()

    def finish(self, total):
        return total


class Wrong(Model):
    def __init__(self, operator: SparseOperator) -> None:
        super().__init__()
        self.operator = operator

    def parts(self):
        return (Part("embedding", 2),)

    def forward(self, rows, dense):
        return (
            self.operator(rows["embedding"]).flatten(1).sum(1) if dense.shape[1] else self.operator(rows["embedding"])
        )


def test_an_operator_that_is_not_additive_needs_the_rows():
    assert readers_of(Wrong(Squares()), 3, 0) == {"embedding": None}
    assert names(readers_of(Wrong(FieldSum()), 3, 1)["embedding"]) == [("operator", 6, False)]


def test_operators_can_be_mapped_over_replicas():
    rows = torch.randn(3, 8, 5, 4)
    term = FactorTerm()
    mapped = torch.func.vmap(lambda r: torch.func.functional_call(term, {}, (r,)))(rows)
    torch.testing.assert_close(mapped, torch.stack([term(r) for r in rows]))
