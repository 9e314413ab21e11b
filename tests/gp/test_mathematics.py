"""Psi statistics, bound and covariances against known values, Monte Carlo and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import TrainingError
from paceline.gp.bound import Process, bound, predict, solve
from paceline.gp.covariance import ard, cholesky, covariance, preference
from paceline.gp.exact import negative_log_likelihood, noisy_factor, posterior
from paceline.gp.psi import kl, psi1, psi2_rows, symmetric

W, VARIANCE = torch.tensor([1.0, 0.5]).double(), torch.tensor(1.5).double()


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(value):
    return torch.tensor(float(value), dtype=torch.float64, requires_grad=True)


def process(z, weights=W, variance=VARIANCE, beta=4.0):
    return Process(weights, variance, torch.tensor(beta).double(), z, torch.ones(len(z), dtype=torch.bool), jitter=0.0)


def random_case(seed, n=5, m=3, dims=2):
    draw = torch.Generator().manual_seed(seed)
    mu, z = (torch.randn(k, dims, generator=draw, dtype=torch.float64) for k in (n, m))
    s = torch.rand(n, dims, generator=draw, dtype=torch.float64)
    weights = torch.rand(dims, generator=draw, dtype=torch.float64) + 0.2
    return mu, s, z, weights, torch.randn(n, generator=draw, dtype=torch.float64), draw


def test_gpfm_values():
    """Likelihood, gradients, alpha and prediction of three rows (computed apart from this code)."""
    x = torch.tensor([[0.0, 0], [1, 0], [0, 2]], dtype=torch.float64, requires_grad=True)
    log_l, log_s, log_sigma, mean = one(0), one(0), one(math.log(0.5)), one(3)
    every = torch.ones(3, dtype=torch.bool)
    factor = noisy_factor(covariance("rbf", x, x, log_l.exp(), log_s.exp()), log_sigma.exp(), every)
    residual = t(3, 4, 2) - mean
    loss = negative_log_likelihood(factor, residual)
    loss.backward()
    assert loss.item() == pytest.approx(1.1365198837, abs=1e-10)
    gradients = [g.grad.item() for g in (log_l, log_s, log_sigma, mean)]
    assert gradients == pytest.approx([0.085829, 0.884219, 0.231694, 0.188493], abs=1e-6)
    rows = [[-0.033464, -0.116734], [-0.037088, 0.141105], [0.070552, -0.024371]]
    np.testing.assert_allclose(x.grad.numpy(), rows, atol=1e-6)
    alpha = torch.cholesky_solve(residual[:, None], factor)[:, 0].detach()
    np.testing.assert_allclose(alpha.numpy(), [-0.425415, 1.060505, -0.823582], atol=1e-6)
    cross = covariance("rbf", t(1, 1)[None], x, t(1)[0], t(1)[0])
    assert (posterior(factor, residual, cross, t(1))[0] + 3).item() == pytest.approx(3.183748, abs=1e-6)


def test_linear_kinds():
    x, y = t(1, 2)[None], t(3, -1)[None]
    assert covariance("linear", x, y, t(2)[0], t(1)[0]).item() == pytest.approx(1.0)
    assert covariance("polynomial", x, y, t(2)[0], t(1)[0]).item() == pytest.approx(2 / 4)


def test_preference_values():
    """Pairs (0, 1), (1, 0), (0, 2)."""
    rows = t(0, 1, 0, 1, 0, 2)[:, None]
    found = preference(covariance("rbf", rows, rows, t(1)[0], t(1)[0]))
    np.testing.assert_allclose(found[0].numpy(), [0.786939, -0.786939, 0.864665], atol=1e-6)
    np.testing.assert_allclose(found.diagonal().numpy(), [0.786939, 0.786939, 1.729329], atol=1e-6)
    # a pair and its reverse: singular, so there is no factor without noise
    assert torch.linalg.eigvalsh(found)[0].abs() < 1e-12
    assert torch.linalg.cholesky_ex(found + 0.01 * torch.eye(3))[1] == 0


def test_psi_values():
    mu, s = t([0.5, -1], [0, 0.25]), t([0.2, 0.1], [0.5, 0])
    z = t([0, 0], [1, -1])
    expected = [[0.948994138, 1.204112259], [1.205756962, 0.593792243]]
    np.testing.assert_allclose(psi1(mu, s, W, VARIANCE, z).numpy(), expected, atol=1e-9)
    second = symmetric(psi2_rows(mu, s, W, VARIANCE, z).sum(0), 2)
    np.testing.assert_allclose(second.numpy(), [[2.504678606, 1.840678054], [1.840678054, 1.958396870]], atol=1e-9)
    assert kl(mu[0], s[0].log()).item() == pytest.approx(1.731011503, abs=1e-9)
    # psi0 = n s^2 is in the bound: without inducing inputs that say anything, it is all there is
    far = process(t([99, 99]))
    every, beta = torch.ones(2, dtype=torch.bool), 4.0
    expected = -0.5 * beta * 3.0 + 0.5 * 2 * (math.log(beta) - math.log(2 * math.pi))
    assert bound(far, mu, s, t(0, 0), every).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("s", "inducing", "value"),
    # the second: -10.0133102640 in the table that these are from; the formula without matrix identities gives this
    [(0.0, 4, -5.0522477367), (0.0, 2, -10.0133102740), (0.2, 4, -6.8988096999)],
)
def test_bound_values(s, inducing, value):
    mu = t([0, 0], [1, -1], [0.5, 2], [-1, 0.5])
    found = bound(process(mu[:inducing]), mu, torch.full_like(mu, s), t(0.3, -0.5, 1.2, 0.1), torch.ones(4, dtype=bool))
    assert found.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("seed", "dims"), [(0, 1), (1, 2), (2, 5)])
def test_psi_statistics_are_averages(seed, dims):
    """Within four standard errors of a Monte Carlo average."""
    mu, s, z, weights, _, draw = random_case(seed, n=3, dims=dims)
    draws = 200_000
    for row in range(3):
        x = mu[row] + s[row].sqrt() * torch.randn(draws, dims, generator=draw, dtype=torch.float64)
        k = ard(x, z, weights, VARIANCE)
        products = k[:, :, None] * k[:, None, :]
        pairs = symmetric(psi2_rows(mu[row : row + 1], s[row : row + 1], weights, VARIANCE, z)[0], len(z))
        for sample, exact in ((k, psi1(mu, s, weights, VARIANCE, z)[row]), (products, pairs)):
            error = sample.std(0) / draws**0.5
            assert ((sample.mean(0) - exact).abs() < 4 * error).all()


@given(st.integers(0, 10_000))
def test_bound_below_exact(seed):
    """With known inputs: equal with all rows as inducing inputs, never above it with fewer."""
    mu, s, _, weights, r, _ = random_case(seed)
    every = torch.ones(5, dtype=torch.bool)
    noisy = ard(mu, mu, weights, VARIANCE) + 0.25 * torch.eye(5, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(5).double(), noisy).log_prob(r).item()
    zero = torch.zeros_like(s)
    assert bound(process(mu, weights), mu, zero, r, every).item() == pytest.approx(exact, abs=1e-6)
    fewer = bound(process(mu[:2], weights), mu, zero, r, every).item()
    assert fewer <= exact + 1e-9


def test_predictions_are_exact_with_known_inputs():
    mu, _, _, weights, r, draw = random_case(7)
    new = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    every, zero = torch.ones(5, dtype=torch.bool), torch.zeros(5, 2).double()
    made = process(mu, weights)
    mean, variance = predict(made, solve(made, mu, zero, r, every), new, torch.zeros(4, 2).double())
    factor = noisy_factor(ard(mu, mu, weights, VARIANCE), t(0.5)[0], every)
    own = VARIANCE.expand(4)
    expected = posterior(factor, r, ard(new, mu, weights, VARIANCE), own)
    np.testing.assert_allclose(mean.numpy(), expected[0].numpy(), atol=1e-8)
    np.testing.assert_allclose(variance.numpy(), expected[1].numpy(), atol=1e-8)


def test_predictive_variance_is_that_of_uncertain_inputs():
    """Law of total variance, by Monte Carlo over the new row's input; all other inputs known."""
    mu, _, _, weights, r, draw = random_case(3)
    every, zero = torch.ones(5, dtype=torch.bool), torch.zeros(5, 2).double()
    made = process(mu, weights)
    found = solve(made, mu, zero, r, every)
    centre, spread = t([0.3, -0.2]), t([0.4, 0.1])
    mean, variance = predict(made, found, centre, spread)
    draws = 200_000
    x = centre + spread.sqrt() * torch.randn(draws, 2, generator=draw, dtype=torch.float64)
    means, variances = predict(made, found, x, torch.zeros_like(x))
    assert abs(means.mean() - mean[0]) < 4 * means.std() / draws**0.5
    total = variances + (means - means.mean()).square()
    assert abs(total.mean() - variance[0]) < 4 * total.std() / draws**0.5


def test_gradients_of_the_bound():
    """Automatic gradients against finite differences."""
    mu, s, z, weights, r, _ = random_case(11)
    every = torch.ones(5, dtype=torch.bool)

    def value(mu, log_s, log_w, log_v, log_b, z, r):
        made = Process(log_w.exp(), log_v.exp(), log_b.exp(), z, torch.ones(3, dtype=torch.bool), jitter=0.0)
        return bound(made, mu, log_s.exp(), r, every)

    leaves = [mu, s.log(), weights.log(), VARIANCE.log(), torch.tensor(0.3).double(), z, r]
    assert torch.autograd.gradcheck(value, [leaf.clone().requires_grad_() for leaf in leaves])


def test_padding_changes_nothing():
    mu, s, z, weights, r, _ = random_case(5)
    plain = bound(process(z, weights), mu, s, r, torch.ones(5, dtype=torch.bool))
    mask = torch.tensor([True] * 5 + [False] * 3)
    wide = Process(
        weights, VARIANCE, torch.tensor(4.0).double(), torch.cat([z, z[:1]]), torch.tensor([True] * 3 + [False]), 0.0
    )
    padded = torch.cat([mu, mu[:3]]), torch.cat([s, s[:3]]), torch.cat([r, torch.zeros(3).double()])
    assert bound(wide, *padded, mask).item() == pytest.approx(plain.item(), abs=1e-12)
    first, second = (
        predict(p, solve(p, *a), mu, s)
        for p, a in ((process(z, weights), (mu, s, r, mask[:5])), (wide, (*padded, mask)))
    )
    np.testing.assert_allclose(first[0].numpy(), second[0].numpy(), atol=1e-12)
    np.testing.assert_allclose(first[1].numpy(), second[1].numpy(), atol=1e-12)


def test_a_weight_of_zero_has_no_influence():
    mu, s, z, weights, r, _ = random_case(9)
    weights[1] = 0
    made = process(z, weights)
    every = torch.ones(5, dtype=torch.bool)
    found = solve(made, mu, s, r, every)
    moved = mu + t(0, 3)
    for a, b in zip(predict(made, found, mu, s), predict(made, found, moved, s + t(0, 2)), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4), st.floats(-8, 3))
def test_kl_is_not_negative(mu, log_s):
    assert kl(t(*mu), torch.full((len(mu),), log_s).double()).item() >= -1e-12
    assert kl(torch.zeros(len(mu)).double(), torch.zeros(len(mu)).double()).item() == 0


def test_cholesky_helps_and_gives_up():
    singular = torch.ones(2, 3, 3, dtype=torch.float64)
    singular[1] = torch.eye(3)
    factor = cholesky(singular, torch.ones(2).double())
    np.testing.assert_allclose((factor @ factor.mT).numpy(), singular.numpy(), atol=1e-5)
    with pytest.raises(TrainingError, match=r"1 user\(s\) are not positive definite"):
        cholesky(-singular[:1], torch.ones(1).double())
