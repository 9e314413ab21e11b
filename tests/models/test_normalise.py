"""Local batch normalisation: torch's own for one worker, statistics in one vector, second moments pooled."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import paceline
from paceline.models.base import Inputs, Model, Normalised, Part, tower
from paceline.models.normalise import LocalBatchNorm, flatten_statistics, pool
from paceline.models.registry import MODELS, build_model
from paceline.params.dense import flatten

OPTIONS = {
    "lr": {},
    "fm": {"dim": 4},
    "wide_deep": {"dim": 4, "hidden": [16, 8]},
    "deepfm": {"dim": 4, "hidden": [16, 8]},
    "dcn_v2": {"dim": 4, "hidden": [16, 8], "cross_layers": 2, "rank": 8},
    "dlrm": {"dim": 4, "hidden": [16, 8], "bottom": [8]},
}
TOWERS = {"lr": 0, "fm": 0, "wide_deep": 24, "deepfm": 24, "dcn_v2": 24, "dlrm": 8 + 4 + 24}  # normalised units
FIELDS = ("a", "b", "c")


def rows_for(model, samples):
    return {p.name: torch.randn(samples, len(FIELDS), p.width) for p in model.parts()}


def test_one_worker_is_torchs_batch_normalisation():
    """Outputs and gradients bitwise, and running statistics, over several steps with flattened parameters and
    statistics; then in eval mode."""
    torch.manual_seed(0)
    ours, torchs = LocalBatchNorm(5), nn.BatchNorm1d(5)
    flat, statistics = flatten(ours), flatten_statistics(ours)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, torchs)]
    for step in range(6):
        x = torch.randn(7 + step, 5) * torch.tensor([1.0, 5.0, 0.1, 30.0, 1e-3]) + torch.tensor(
            [0.0, 3.0, -9.0, 1.0, 0.0]
        )
        target = torch.randn_like(x)
        found = []
        for module, optimizer in zip((ours, torchs), optimizers, strict=True):
            leaf = x.clone().requires_grad_()
            out = module(leaf)
            optimizer.zero_grad()
            (out * target).sum().backward()
            found.append((out.detach(), leaf.grad, module.weight.grad.clone(), module.bias.grad.clone()))
            optimizer.step()
        for mine, theirs in zip(*found, strict=True):
            assert torch.equal(mine, theirs)
        torch.testing.assert_close(statistics, torch.cat([torchs.running_mean, torchs.running_var]))
    assert torch.equal(flat, torch.cat([torchs.weight, torchs.bias]))
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(statistics, torch.cat([torchs.running_mean, torchs.running_var]))


def test_constant_inputs_of_two_workers_pool_to_their_spread():
    """Our note, section 5.3: mean (a + b) / 2, variance (a - b)^2 / 4."""
    norms = [LocalBatchNorm(2), LocalBatchNorm(2)]
    vectors = [flatten_statistics(norm) for norm in norms]
    a, b = torch.tensor([3.0, -1.0]), torch.tensor([7.0, 0.5])
    for _ in range(400):
        for norm, value in zip(norms, (a, b), strict=True):
            norm(value.expand(8, 2))
    expected = torch.cat([(a + b) / 2, (a - b).square() / 4])
    torch.testing.assert_close(pool(torch.stack(vectors)), expected, rtol=1e-5, atol=1e-6)


def test_pooled_statistics_are_those_of_all_rows_together():
    """Workers with as many rows each and biased variances: exactly the moments of the union."""
    torch.manual_seed(0)
    rows = torch.randn(4, 50, 3, dtype=torch.float64) * 2 + torch.arange(4).reshape(4, 1, 1) * 5
    parts = torch.cat([rows.mean(1), rows.var(1, correction=0)], dim=1).float()
    together = rows.reshape(200, 3)
    expected = torch.cat([together.mean(0), together.var(0, correction=0)]).float()
    torch.testing.assert_close(pool(parts), expected)


def test_pool_does_not_lose_a_small_variance_and_is_never_negative():
    mean, small = 1000.0, 1e-4  # in float32 mean^2 has steps of 0.06
    pooled = pool(torch.tensor([[mean, small], [mean, small]]))
    torch.testing.assert_close(pooled, torch.tensor([mean, small]), rtol=1e-4, atol=0)
    assert pool(torch.tensor([[0.1, 0.0]] * 3))[1] >= 0
    one = torch.rand(1, 6)
    torch.testing.assert_close(pool(one), one[0])
    assert pool(torch.zeros(3, 0)).shape == (0,)


def test_statistics_are_views_of_one_vector():
    torch.manual_seed(0)
    model = tower(3, [4, 2], "local_batch")
    first, second = model[1], model[4]
    first.mean.fill_(1), second.mean.fill_(2), first.var.fill_(3), second.var.fill_(4)
    keys = list(model.state_dict())
    flat = flatten_statistics(model)
    assert flat.dtype == torch.float32
    assert flat.tolist() == [1.0] * 4 + [2.0] * 2 + [3.0] * 4 + [4.0] * 2
    assert list(model.state_dict()) == keys
    flat.copy_(torch.arange(1.0, 13.0))
    assert first.mean.tolist() == [1, 2, 3, 4]
    assert second.var.tolist() == [11, 12]
    before = flat.clone()
    model(torch.randn(8, 3))
    assert (flat != before).all()
    assert torch.equal(flat, torch.cat([first.mean, second.mean, first.var, second.var]))
    kept = flat.clone()
    model.eval()
    model(torch.randn(8, 3))
    assert torch.equal(flat, kept)
    model.load_state_dict(tower(3, [4, 2], "local_batch").state_dict())
    assert flat.tolist() == [0.0] * 6 + [1.0] * 6
    assert flatten_statistics(nn.Linear(2, 2)).shape == (0,)


def test_eval_uses_what_the_vector_holds():
    """This is how the pooled export is scored."""
    model = tower(2, [3], "local_batch").eval()
    flat = flatten_statistics(model)
    x = torch.randn(4, 2)
    flat.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0, 16.0]))
    expected = ((model[0](x) - flat[:3]) / (flat[3:] + 1e-5).sqrt()).relu()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("moving", [False, True])
def test_a_batch_of_one_row_is_served_by_the_running_statistics(moving):
    norm = LocalBatchNorm(3, moving)
    flat = flatten_statistics(norm)
    flat.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 4.0]))
    kept = flat.clone()
    x = torch.tensor([[3.0, 3.0, 3.0]], requires_grad=True)
    out = norm(x)
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.5, 0.0]]), rtol=1e-4, atol=1e-6)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 3), 0.5), rtol=1e-4, atol=0)
    assert torch.equal(flat, kept)
    assert norm(torch.zeros(0, 3)).shape == (0, 3)
    assert torch.equal(flat, kept)


def test_moving_normalises_with_the_workers_own_statistics():
    """After their update, and as constants: the gradient is that of an affine map."""
    torch.manual_seed(0)
    moving, batch = LocalBatchNorm(4, moving=True), LocalBatchNorm(4)
    flat, of_batch = flatten_statistics(moving), flatten_statistics(batch)
    for _ in range(3):
        x = (torch.randn(9, 4) * 3 + 2).requires_grad_()
        out = moving(x)
        batch(x)
        torch.testing.assert_close(flat, of_batch)  # the update is the same, and has happened already
        scale = (flat[4:] + 1e-5).rsqrt()
        torch.testing.assert_close(out, (x - flat[:4]) * scale)
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(grad, scale.expand(9, 4))
    moving.eval()
    torch.testing.assert_close(moving(x), out)


def test_layers_that_share_the_vector_do_not_disturb_each_others_backward():
    """A later layer changes the vector of which an earlier layer's statistics are views: its gradient must be that of
    layers with buffers of their own. So must that of a layer used twice."""
    torch.manual_seed(0)
    alone = nn.Sequential(tower(3, [4, 5], "local_moving"), nn.Linear(5, 1))
    flattened = copy.deepcopy(alone)
    flatten_statistics(flattened)
    for _ in range(3):
        x = torch.randn(8, 3)
        grads = [
            torch.autograd.grad(m(x).square().sum(), list(m.parameters()), materialize_grads=True)
            for m in (alone, flattened)
        ]
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)
    norm = LocalBatchNorm(3, moving=True)
    (norm(torch.randn(8, 3)) + norm(torch.randn(8, 3))).sum().backward()


@pytest.mark.parametrize("moving", [False, True])
def test_bf16_autocast_normalises_in_float32(moving):
    torch.manual_seed(0)
    norm, wide = LocalBatchNorm(3, moving), LocalBatchNorm(3, moving)
    x = (torch.randn(64, 3) * 0.1 + 40).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
        assert norm(torch.randn(4, 3)).dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wide(x.float()).bfloat16())
    assert {v.dtype for v in norm.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("normalise", ["local_batch", "local_moving"])
@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_and_scores_with_it(name, dense, normalise):
    """As a worker has it (flattened, wrapped as the assembly does), in both precisions; and the statistics are as
    many as its normalised units."""
    torch.manual_seed(0)
    inputs = Inputs(FIELDS, dense, normalise)
    model = Normalised(build_model(name, OPTIONS[name], inputs), inputs)
    flat, statistics = flatten(model), flatten_statistics(model)
    units = TOWERS[name] - (12 if name == "dlrm" and not dense else 0) + dense
    assert statistics.shape == (2 * units,)
    assert torch.equal(statistics, torch.cat([torch.zeros(units), torch.ones(units)]))
    rows, numbers = rows_for(model, 32), torch.randn(32, dense) * 100 + 50
    labels = torch.randint(2, (32,)).float()
    optimizer = torch.optim.SGD([flat], lr=0.05)
    losses = []
    for step in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 1):
            logits = model(rows, numbers)
        assert logits.shape == (32,)
        loss = binary_cross_entropy_with_logits(logits.float(), labels)
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        flat.grad = torch.cat([g.reshape(-1) for g in grads])
        assert flat.grad.isfinite().all()
        assert flat.grad.shape == (sum(p.numel() for p in model.parameters()),)  # a push holds no statistics
        with torch.no_grad():
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[20]  # running statistics start from (0, 1) and have to settle before a loss can fall
    assert (statistics[:units] != 0).sum() >= 0.5 * units  # a unit that is always 0 keeps a mean of 0
    assert (statistics[units:] >= 0).all()
    model.eval()
    kept = statistics.clone()
    both = model(rows, numbers)
    alone = torch.cat([model({k: v[i : i + 1] for k, v in rows.items()}, numbers[i : i + 1]) for i in range(32)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)  # a row's score does not depend on its batch
    assert torch.equal(statistics, kept)


KEYS = {
    "lr": "linear.bias dense.weight",
    "fm": "linear.bias dense.weight",
    "wide_deep": "linear.bias dense.weight deep.first.weight deep.first.bias deep.dense.weight deep.rest.0.weight"
    " deep.rest.0.bias deep.out.weight",
    "deepfm": "linear.bias dense.weight deep.first.weight deep.first.bias deep.dense.weight deep.rest.0.weight"
    " deep.rest.0.bias deep.out.weight",
    "dcn_v2": "cross.0.map.0.weight cross.0.map.1.weight cross.0.map.1.bias cross.1.map.0.weight cross.1.map.1.weight"
    " cross.1.map.1.bias deep.0.weight deep.0.bias deep.2.weight deep.2.bias out.weight out.bias",
    "dlrm": "bottom.0.weight bottom.0.bias bottom.2.weight bottom.2.bias top.0.weight top.0.bias top.2.weight"
    " top.2.bias out.weight out.bias",
}


@pytest.mark.parametrize("name", MODELS)
def test_none_leaves_a_model_as_it_is(name):
    """What checkpoints and the sync promise rest on: names, order and random draws of the parameters."""

    def made(**normalise):
        torch.manual_seed(5)
        return build_model(name, OPTIONS[name], Inputs(FIELDS, 2, **normalise))

    plain = made()
    assert list(plain.state_dict()) == KEYS[name].split()
    assert [n for n, _ in plain.named_parameters()] == KEYS[name].split()
    assert list(made(normalise="none").state_dict()) == KEYS[name].split()
    assert not any(isinstance(m, LocalBatchNorm) for m in plain.modules())
    assert flatten_statistics(plain).shape == (0,)
    # The normalisation draws nothing: the other parameters are the same with it.
    with_it = made(normalise="local_batch")
    norms = {p for m in with_it.modules() if isinstance(m, LocalBatchNorm) for p in m.parameters()}
    others = [p for p in with_it.parameters() if p not in norms]
    for one, other in zip(plain.parameters(), others, strict=True):
        assert torch.equal(one, other)


def test_a_models_dense_inputs_are_normalised_for_it():
    """A user's model that knows nothing of it."""

    class Plain(Model):
        def parts(self):
            return (Part("linear", 1, 0.0),)

        def forward(self, rows, dense):
            self.seen = dense
            return dense.sum(1) + rows["linear"].sum(dim=(1, 2))

    inner = Plain()
    model = Normalised(inner, Inputs(FIELDS, 2, "local_batch"))
    assert model.parts() == inner.parts()
    rows, dense = {"linear": torch.ones(64, 3, 1)}, torch.randn(64, 2) * 7 + 3
    logits = model(rows, dense)
    torch.testing.assert_close(inner.seen.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(inner.seen.var(0, correction=0), torch.ones(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, inner.seen.sum(1) + 3)


def test_a_users_model_may_import_it():
    assert paceline.LocalBatchNorm is LocalBatchNorm
    assert tower(3, [4]).state_dict().keys() == {"0.weight", "0.bias"}
