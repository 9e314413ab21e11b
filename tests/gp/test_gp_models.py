"""Invariants of the models: objectives that add up, limits, what was never seen, what is planted."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rating_data import RATINGS, rating_file

from paceline.gp.bound import Process, bound
from paceline.gp.config import FactorizeConfig
from paceline.gp.covariance import covariance
from paceline.gp.encode import Rows, Vocabulary
from paceline.gp.exact import negative_log_likelihood, noisy_factor
from paceline.gp.fitting import Fitter, RowMomentum
from paceline.gp.ranking import ranking
from paceline.gp.ratings import read_ratings
from paceline.gp.story import factorize, make_model
from paceline.gp.users import blocks
from paceline.jobfile import check

ROOT = Path(__file__).parents[2]


def built(tmp_path, model, **changes):
    rating_file(tmp_path)
    config = check({"ratings": RATINGS, "model": model, **changes}, "test", kind=FactorizeConfig)
    read = read_ratings("ratings.csv", config.ratings, tmp_path, lambda _: None)
    vocabulary = Vocabulary.of(read)
    rows = vocabulary.encode(read)
    return make_model(config, vocabulary, rows), config, rows


def total(model, users=None):
    return sum(model.loss(batch) for batch in model.batches(users, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "gplvmf", "user_deviation": 0.5},
        {"name": "gplvmf", "biases": "deterministic", "user_deviation": 0, "inducing": 3},
        {"name": "gpfm"},
        {"name": "fm"},
    ],
)
def test_the_steps_objectives_add_up_to_the_whole(tmp_path, model):
    made, _, _ = built(tmp_path, model)
    made.begin(100)
    whole, parts = total(made), total(made, users=3)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-10)
    # and so do their gradients, also of rows that several users share
    names = list(made.parameters)
    for a, b in zip(
        torch.autograd.grad(whole, list(made.parameters.values()), allow_unused=True),
        torch.autograd.grad(parts, list(made.parameters.values()), allow_unused=True),
        strict=True,
    ):
        name = names.pop(0)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("model", "name"), [("gplvmf", "mu.item"), ("gpfm", "x.mood"), ("fm", "v.item")])
def test_gradients_are_those_of_differences(tmp_path, model, name):
    made, _, _ = built(tmp_path, {"name": model})
    leaf, step = made.parameters[name], 1e-5
    gradient = torch.autograd.grad(total(made), leaf)[0]
    with torch.no_grad():
        for place in ((0, 0), (1, 0)):
            old = leaf[place].item()
            leaf[place] = old + step
            above = total(made).item()
            leaf[place] = old - step
            below = total(made).item()
            leaf[place] = old
            assert gradient[place].item() == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-4)


def test_gpfm_is_the_limit_of_known_inputs():
    """S = 0, Z = X, w = 1 / l^2 for all coordinates: the bound is GPFM's likelihood (with its constant)."""
    draw = torch.Generator().manual_seed(1)
    x, r = (torch.randn(6, *size, generator=draw, dtype=torch.float64) for size in ((3,), ()))
    length, amplitude, sigma = (torch.tensor(v).double() for v in (0.7, 1.3, 0.4))
    every = torch.ones(6, dtype=torch.bool)
    process = Process((1 / length**2).expand(3), amplitude**2, 1 / sigma**2, x, every, 0.0)
    factor = noisy_factor(covariance("rbf", x, x, length, amplitude), sigma, every)
    expected = -negative_log_likelihood(factor, r).item() - 3 * math.log(2 * math.pi)
    assert bound(process, x, torch.zeros_like(x), r, every).item() == pytest.approx(expected, abs=1e-8)


def test_real_contexts_are_fixed_and_cost_nothing(tmp_path):
    made, _, rows = built(tmp_path, {"name": "gplvmf"})
    assert not [name for name in made.parameters if "temperature" in name]
    mu, s = made._inputs(rows, torch.arange(len(rows)))
    assert torch.equal(mu[:, -1], rows.reals[:, 0])
    assert (s[:, -1] == 0).all()
    assert rows.reals[:, 0].mean().abs() < 1e-12


def test_what_was_never_seen_is_uncertain(tmp_path):
    """A new context value raises the variance; a new user gets the mean function alone."""
    made, config, rows = built(tmp_path, {"name": "gplvmf"}, training={"epochs": 6})
    fitter = Fitter(made, config)
    for epoch in range(6):
        fitter.epoch(epoch, lambda _: None)
    known = Rows(rows.user[:1], rows.item[:1], rows.contexts[:1], rows.reals[:1], rows.rating[:1])
    strange = Rows(known.user, known.item, torch.full_like(known.contexts, -1), known.reals, known.rating)
    nobody = Rows(torch.tensor([-1]), known.item, known.contexts, known.reals, known.rating)
    assert made.predict(strange)[1] > made.predict(known)[1]
    mean, variance = made.predict(nobody)
    p = {name: value.detach() for name, value in made.parameters.items()}
    expected = p["bias"] + p["bias.item"][known.item] + p["bias.mood"][known.contexts[:, 0]]
    assert mean.item() == pytest.approx((expected + known.reals @ p["slope"]).item())
    assert variance > made.predict(known)[1]


def test_a_weight_of_zero_takes_a_context_out(tmp_path):
    made, _, rows = built(tmp_path, {"name": "gplvmf"})
    with torch.no_grad():
        made.parameters["log_weights"][-1] = -torch.inf
        made.parameters["slope"].zero_()
    moved = Rows(rows.user, rows.item, rows.contexts, rows.reals + 5, rows.rating)
    for a, b in zip(made.predict(rows), made.predict(moved), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("model", "method"), [("gplvmf", "lbfgs"), ("gplvmf", "adam"), ("gpfm", "sgd"), ("fm", "adam")]
)
def test_fitting_lowers_the_objective(tmp_path, model, method):
    made, config, _ = built(tmp_path, model, training={"method": method, "epochs": 5, "iterations": 5})
    made.begin(100)
    before, fitter = total(made).item(), Fitter(made, config)
    for epoch in range(5):
        fitter.epoch(epoch + 100, lambda _: None)
    assert total(made).item() < before


def test_momentum_belongs_to_rows():
    table = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer = RowMomentum([table], lr=1.0, momentum=0.5)
    for row in (0, 1, 0):
        optimizer.zero_grad()
        table[row].sum().backward()
        optimizer.step()
    # row 0: -1, then not moved by row 1's step, then -(0.5 + 1)
    assert table.detach().tolist() == [[-2.5, -2.5], [-1, -1], [0, 0]]


def test_blocks_hold_every_row_once():
    draw = torch.Generator().manual_seed(0)
    user = torch.randint(-1, 40, (300,), generator=draw)
    found = torch.cat([block.rows[block.mask] for block in blocks(user)])
    assert sorted(found.tolist()) == torch.nonzero(user >= 0)[:, 0].tolist()
    for block in blocks(user):
        for name, rows, mask in zip(block.users, block.rows, block.mask, strict=True):
            assert (user[rows[mask]] == name).all()


def test_ranking_by_hand():
    """One user, three rows in the order 5, 1, 4; another with a single row, who is left out."""
    users, scores = np.array([0, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 1.0])
    found = ranking(users, scores, np.array([5.0, 4.0, 1.0, 5.0]), relevant=4, highest=5)
    gain = 31 + 1 / math.log2(3) + 15 / 2
    assert found["ndcg@10"] == pytest.approx(gain / (31 + 15 / math.log2(3) + 1 / 2))
    assert found["map@10"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["precision@10"] == pytest.approx(2 / 3)
    stops = (31 / 32, 1 / 32, 15 / 32)
    err = stops[0] + (1 - stops[0]) * stops[1] / 2 + (1 - stops[0]) * (1 - stops[1]) * stops[2] / 3
    assert found["err@10"] == pytest.approx(err)
    assert found["ranked_users"] == 1


@pytest.mark.parametrize("kind", ["categorical", "real"])
def test_a_planted_context_is_told_from_a_random_one(tmp_path, kind, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))
    spec = importlib.util.spec_from_file_location("gp_evidence", ROOT / "evidence" / "gp_factorization.py")
    evidence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evidence)
    sys.modules.pop("harness", None)
    ratings = evidence.planted(tmp_path, {"seed": 5, "contexts": kind, "quick": False})
    model = {"name": "gplvmf", "dim": 2, "inducing": 16}
    config = check({"ratings": ratings, "model": model, "training": {"epochs": 40}}, "test", kind=FactorizeConfig)
    factorize(config, tmp_path, tmp_path / "run")
    weights = json.loads((tmp_path / "run" / "importances.json").read_text())
    assert sum(weights["random"]) < 0.1 * sum(weights["informative"])
