"""MRMN, LRML and CML: the vectors and invariants of our note on MRMN, section 5."""

import copy

import pytest
import torch

from paceline.errors import ConfigError
from paceline.models.base import Inputs
from paceline.models.mrmn import LRML, MRMN
from paceline.models.ranking import CML
from paceline.models.registry import build_model

TYPES = ("view", "cart", "buy")
QUERIES = ("product", "additive", "linear")


def inputs(types=("buy",), negatives=1):
    return Inputs(("user", "item", *(f"drawn {k}" for k in range(negatives))), 1, types=types)


def doubles(model):
    """In double precision, what is no parameter included."""
    for name, value in vars(model).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(model, name, value.double())
    return model.double()


def made(seed=0, count=3, dim=5, slots=4, negatives=3, model=MRMN, **options):
    """(a model with parameters that are not near their start, rows [8, 2 + negatives, dim], types [8])"""
    torch.manual_seed(seed)
    chosen = doubles(model(inputs(TYPES[:count], negatives), dim=dim, slots=slots, **options))
    with torch.no_grad():
        for parameter in chosen.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return chosen, torch.randn(8, 2 + negatives, dim, dtype=torch.float64) * 0.4, torch.randint(count, (8,))


@pytest.fixture
def vector():
    """The note's example: rows, and a model with its parameters for either relation."""

    def build(relation):
        model = MRMN(inputs(), dim=2, slots=2, relation=relation, margins=[1.5])
        with torch.no_grad():
            model.vectors.copy_(torch.tensor([[1.0, 2.0]]))
            model.keys.copy_(torch.eye(2))
            model.memory.copy_(torch.tensor([[0.2, 0.1], [-0.1, 0.3]]))
        return model

    rows = torch.tensor([[[0.6, 0.0], [0.3, 0.4], [-0.5, 0.2]]])
    return build, rows


ONE = torch.zeros(1, dtype=torch.int64)


def close(a, b):
    torch.testing.assert_close(a, torch.tensor(b), rtol=0, atol=1e-6)


def test_the_notes_example_pair_by_pair(vector):
    build, rows = vector
    model = build("own")
    user, items = rows[:, :1], rows[:, 1:]
    close(model.query(user, items, ONE)[0], [[0.18, 0.0], [-0.3, 0.0]])
    close(model.attention(user, items, ONE)[0], [[0.544879, 0.455121], [0.425557, 0.574443]])
    close(model.relations(user, items, ONE)[0], [[0.063464, 0.191024], [0.027667, 0.214889]])
    close(model.distances(user, items, ONE)[0], [0.175777, 1.271855])


@pytest.mark.parametrize(
    ("relation", "distance", "loss"), [("own", 1.271855, 0.403922), ("positive", 1.353728, 0.322048)]
)
def test_the_notes_example_loss(vector, relation, distance, loss):
    build, rows = vector
    model = build(relation)
    close(model.distances(rows[:, :1], rows[:, 1:], ONE)[0], [0.175777, distance])
    out = model({"vector": rows}, torch.zeros(1, 1))
    assert out.shape == (1, 1) == model.shape(1)
    close(model.loss(out, torch.ones(1)), loss)


@pytest.mark.parametrize("query", QUERIES)
def test_attention_is_a_distribution_and_relations_lie_among_the_memory(query):
    model, rows, types = made(query=query)
    attention = model.attention(rows[:, :1], rows[:, 1:], types)
    assert (attention > 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    related = model.relations(rows[:, :1], rows[:, 1:], types)
    # A hull's support in any direction is that of its corners.
    directions = torch.randn(50, 5, dtype=torch.float64)
    assert (related @ directions.T <= (model.memory @ directions.T).max(0).values + 1e-12).all()


def test_without_memory_it_is_metric_learning_for_all_types():
    model, rows, types = made()
    with torch.no_grad():
        model.memory.zero_()
    plain = (rows[:, :1] - rows[:, 1:]).square().sum(-1)
    torch.testing.assert_close(model.distances(rows[:, :1], rows[:, 1:], types), plain)
    torch.testing.assert_close(CML(inputs(TYPES, 3), dim=5).distances(rows[:, :1], rows[:, 1:], types), plain)


def test_one_slot_makes_one_relation():
    model, rows, types = made(slots=1)
    related = model.relations(rows[:, :1], rows[:, 1:], types)
    torch.testing.assert_close(related, model.memory[0].expand_as(related))


def test_equal_keys_make_the_mean_of_the_memory():
    model, rows, types = made()
    with torch.no_grad():
        model.keys.copy_(model.keys[:1].expand_as(model.keys).clone())
    attention = model.attention(rows[:, :1], rows[:, 1:], types)
    torch.testing.assert_close(attention, torch.full_like(attention, 0.25))
    related = model.relations(rows[:, :1], rows[:, 1:], types)
    torch.testing.assert_close(related, model.memory.mean(0).expand_as(related))


def test_equal_types_are_one_and_their_relation_is_lrmls():
    model, rows, types = made(relation="positive", margins=[0.7])
    lrml = made(model=LRML)[0]
    with torch.no_grad():
        model.vectors.fill_(1.0)
        lrml.keys.copy_(model.keys)
        lrml.memory.copy_(model.memory)
    outs = [model({"vector": rows}, torch.full((8, 1), float(t))) for t in range(3)]
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
    torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=0)
    of = (rows[:, :1], rows[:, 1:2], types)
    torch.testing.assert_close(model.relations(*of), lrml.relations(*of), rtol=0, atol=0)
    squared = model.distances(rows[:, :1], rows[:, 1:], types)
    torch.testing.assert_close(lrml.distances(rows[:, :1], rows[:, 1:], types), (squared + 0.001).sqrt())


def test_permuted_slots_change_nothing():
    model, rows, types = made()
    other, order = copy.deepcopy(model), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        other.keys.copy_(model.keys[order])
        other.memory.copy_(model.memory[order])
    pairs = (rows[:, :1], rows[:, 1:], types)
    torch.testing.assert_close(model.distances(*pairs), other.distances(*pairs))


@pytest.mark.parametrize("relation", ["own", "positive"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_finite_differences(relation, query, gated):
    """Away from the kink: hinges that are nearly 0 are moved off it by the margin."""
    model, rows, types = made(relation=relation, query=query, gated=gated, learn_margins=True)
    parameters = [p.detach().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def loss(rows, *values):
        out = torch.func.functional_call(
            model, dict(zip(names, values, strict=True)), ({"vector": rows}, types.unsqueeze(1).double())
        )
        assert (out.abs() > 1e-4).all()
        return model.loss(out, torch.ones(8))

    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(), *parameters))


def test_an_inactive_hinge_has_gradients_of_exactly_zero():
    model, rows, _ = made(margins=[0.1], negatives=1)
    rows[:, 1], rows[:, 2] = rows[:, 0], 50.0  # the item at its user, the negative far away
    with torch.no_grad():
        model.memory.mul_(1e-3)
    rows.requires_grad_()
    out = model({"vector": rows}, torch.zeros(8, 1))
    assert (out < 0).all()
    for gradient in torch.autograd.grad(
        model.loss(out, torch.ones(8)), [rows, model.keys, model.memory, model.vectors]
    ):
        assert not gradient.any()


@pytest.mark.parametrize(
    ("model", "options"),
    [(MRMN, {"query": q, "gated": g}) for q in QUERIES for g in (False, True)] + [(LRML, {}), (CML, {})],
    ids=str,
)
def test_ranking_is_by_the_distance_of_each_pair_with_its_own_relation(model, options):
    torch.manual_seed(3)
    slots = {} if model is CML else {"slots": 4}
    chosen = doubles(model(inputs(TYPES, 7), dim=5, **slots, **options))
    with torch.no_grad():
        for parameter in chosen.parameters():
            parameter.copy_(torch.randn_like(parameter))
    users, items = torch.randn(6, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    types = torch.tensor([0, 1, 2, 2, 1, 0])
    ranked = chosen.rank({"vector": users}, {"vector": items}, types)
    for u in range(6):
        for v in range(9):
            one = chosen.distances(users[u].view(1, 1, 5), items[v].view(1, 1, 5), types[u : u + 1])
            torch.testing.assert_close(ranked[u, v], one[0, 0])


def test_margins_are_ordered_by_strength_bounded_and_told():
    assert MRMN(inputs(TYPES)).margins().tolist() == [0.5, 0.75, 1.0]
    assert MRMN(inputs(TYPES), margins=[0.3]).margins().tolist() == pytest.approx([0.3] * 3)
    model = MRMN(inputs(TYPES), learn_margins=True)
    assert model.told() == {"margins": {"view": 0.5, "cart": 0.75, "buy": 1.0}}
    with torch.no_grad():
        model.raw_margins.copy_(torch.tensor([-100.0, 0.0, 100.0]))
    assert model.margins().tolist() == pytest.approx([0.1, 1.05, 2.0])


def test_weights_are_of_types():
    torch.manual_seed(0)
    plain = MRMN(inputs(TYPES, 2), dim=4)
    weighted = copy.deepcopy(plain)
    weighted._weights = torch.tensor([0.0, 1.0, 3.0])
    rows, dense = {"vector": torch.randn(3, 4, 4)}, torch.tensor([[0.0], [1.0], [2.0]])
    torch.testing.assert_close(weighted(rows, dense), plain(rows, dense) * torch.tensor([[0.0], [1.0], [3.0]]))


def test_training_starts_near_lrml():
    """Type vectors start at 1 with little noise (our note, section 4)."""
    model = MRMN(inputs(TYPES))
    assert 0 < float((model.vectors.detach() - 1).abs().max()) < 0.1


BAD = [
    ("mrmn", {"query": "sum"}, r"model: mrmn .*query 'sum' must be one of product, additive, linear"),
    ("mrmn", {"relation": "negative"}, "relation 'negative' must be one of own, positive"),
    ("mrmn", {"margins": [1.0, 0.5]}, "margins .* one number, or 3, one for each type"),
    ("mrmn", {"margins": "high"}, "model.margins: 'high' must be a list of numbers"),
    ("mrmn", {"margins": [3.0], "learn_margins": True}, "between 0.1 and 2"),
    ("mrmn", {"weights": [1, 1]}, "weights .* one number, or 3"),
    ("mrmn", {"gated": "yes"}, "model.gated: 'yes' must be true or false"),
    ("mrmn", {"slots": 0}, "model.slots: 0 must be a whole number"),
    ("mrmn", {"std": 1.0}, "outside the unit ball"),
    ("mrmn", {"slot": 4}, "model.slot: mrmn has no such option; did you mean 'slots'"),
    ("cml", {"slots": 4}, "model.slots: cml has no such option"),
    ("lrml", {"margin": -1}, "model.margin: -1 must be a finite number"),
    ("lr", {}, "model.name: lr predicts clicks; with interactions use one of mrmn, cml, lrml"),
]


@pytest.mark.parametrize(("name", "options", "told"), BAD, ids=str)
def test_bad_options(name, options, told):
    with pytest.raises(ConfigError, match=told):
        build_model(name, options, inputs(TYPES))


def test_ranking_models_need_interactions():
    with pytest.raises(ConfigError, match="mrmn ranks items; without interactions use one of lr, fm"):
        build_model("mrmn", {}, Inputs(("a", "b"), 0))
