"""Only the largest partial sums of a sample travel (DCT-MP): the note's invariant 7, bytes, and what is chosen."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import LOAD, Case, Ranks, batches, make_model, step_once, train_together

from paceline.exchange.cost import Load, Roles, RowPart, Shape, choose, numbers
from paceline.exchange.masking import kept_numbers, largest
from paceline.exchange.substitution import Substitution
from paceline.params.feedback import kept_entries
from paceline.runtimes.collective import make_plan
from paceline.runtimes.compute import Layout

DEEPFM = {"dim": 16, "hidden": [8, 4]}


@pytest.fixture(scope="module")
def ranks():
    made = Ranks(3)
    yield made
    made.close()


@given(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.floats(0.01, 1), st.integers(0, 99))
def test_each_sample_sends_the_largest_of_each_segment(samples, segments, share, seed):
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.standard_normal((samples, sum(segments))).astype(np.float32))
    values[torch.from_numpy(random.random(values.shape) < 0.3)] = 0.0
    present = (values != 0) | torch.from_numpy(random.random(values.shape) < 0.5)
    mask = largest(values, present, segments, share)
    assert not (mask.chosen & ~present).any()
    for chosen, sizes, there in zip(*(t.split(segments, 1) for t in (mask.chosen, values.abs(), present)), strict=True):
        count = kept_entries(share, chosen.shape[1])
        for row, size, able in zip(chosen, sizes, there, strict=True):
            assert int(row.sum()) == min(count, int(able.sum())), "fewer only where there are no more"
            assert bool((size[able & ~row] <= (size[row].min() if row.any() else 0)).all())
    assert torch.equal(mask.spread(mask.values(torch.ones(values.shape))), mask.chosen.float())
    assert mask.count == int(mask.chosen.sum())


def test_where_nothing_is_saved_all_is_sent():
    assert kept_numbers(1.0, [100]) is None
    assert kept_numbers(0.1, []) is None
    assert kept_numbers(0.5, [1, 1]) is None, "of one number one is kept"
    assert kept_numbers(0.999, [1000]) is None, "the mask takes more than it saves"
    assert kept_numbers(0.1, [17]) == 2
    assert kept_numbers(0.1, [16, 256, 1]) == 2 + 26 + 1
    assert kept_numbers(0.05, [100]) == 5


@pytest.mark.parametrize("exchange", ["substitute", "auto"])
def test_all_kept_is_bitwise_no_mask(ranks, exchange):
    plain = ranks.together(3, train_together, Case("deepfm", DEEPFM, exchange))
    kept = ranks.together(3, train_together, Case("deepfm", DEEPFM, exchange, sums=0.9999))
    for one, other in zip(plain, kept, strict=True):
        assert one["losses"] == other["losses"]
        np.testing.assert_array_equal(one["dense"], other["dense"])


class Masked:
    """The loss of a batch as a function of each shard's rows, the masks held fixed, in float64."""

    def __init__(self, case, answers):
        self.case, self.batch = case, batches(case)[0][0]
        self.model = make_model(case)
        self.layout = Layout(self.model.parts(), case.singles, len(case.bags))
        ranks = tuple(range(len(answers)))
        plan = make_plan(self.model, self.layout, case.dense, Roles(ranks, (0,)), LOAD, case.exchange, None, case.sums)
        self.substitution = Substitution(self.model, plan.shape, plan.modes)
        self.model.double()
        self.masks = [answer["mask"] for answer in answers]
        self.cells = [answer["cells"] for answer in answers]

    @torch.no_grad()
    def __call__(self, rows):
        total = 0
        for weights, cells, mask in zip(rows, self.cells, self.masks, strict=True):
            total = total + self.substitution.partial(self.pooled(weights, cells)) * mask
        logits = self.model(self.substitution.given(total), torch.from_numpy(self.batch.dense).double())
        labels = torch.from_numpy(self.batch.labels).double()
        return float(torch.nn.functional.binary_cross_entropy_with_logits(logits.reshape(-1), labels))

    def pooled(self, weights, cells):
        found = torch.zeros(self.batch.samples, len(cells), weights.shape[1], dtype=torch.float64)
        for field, cell in enumerate(cells):
            for sample in range(self.batch.samples):
                for k in range(cell.offsets[sample], cell.offsets[sample + 1]):
                    found[sample, field] += float(cell.weights[k]) * weights[cell.index[k]]
        begins = self.layout.begins()
        return {
            part.name: found[:, :, begin : begin + part.width]
            for part, begin in zip(self.layout.parts, begins, strict=True)
        }


@pytest.mark.parametrize("bags", [(), ("mean", "sum")])
@pytest.mark.parametrize("model", ["deepfm", "fm", "dlrm"])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_are_those_of_the_masked_function(ranks, model, size, bags):
    """Finite differences agree while the masks are held fixed, and what was not sent has no gradient."""
    options = {"deepfm": DEEPFM, "fm": {"dim": 16}, "dlrm": {"dim": 4, "hidden": [8], "bottom": [8]}}[model]
    case = Case(model, options, "substitute", bags=bags, sums=0.2)
    answers = ranks.together(size, step_once, case)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    function = Masked(case, answers)
    rows = [torch.from_numpy(answer["weights"]).double() for answer in answers]
    assert answers[0]["loss"][0] == pytest.approx(function(rows), rel=1e-5)
    random, step, nothing = np.random.default_rng(1), 1e-5, 0
    for shard, answer in enumerate(answers):
        mask, width, gradients = answer["mask"], answer["sums"].shape[1], answer["gradients"]
        assert sum(answer["segments"]) == width
        assert (mask.sum(1) <= kept_numbers(0.2, answer["segments"])).all()
        assert answer["back"].shape == (int(mask.sum()),), "values alone come back, and of the mask alone"
        learns, rests = np.argwhere(gradients != 0), np.argwhere(gradients == 0)
        assert len(learns) > 5
        for row, column in [*random.permutation(learns)[:12], *random.permutation(rests)[:12]]:
            moved = []
            for sign in (1, -1):
                there = [weights.clone() for weights in rows]
                there[shard][row, column] += sign * step
                moved.append(function(there))
            assert float(gradients[row, column]) == pytest.approx(
                (moved[0] - moved[1]) / (2 * step), rel=2e-3, abs=1e-6
            )
            nothing += gradients[row, column] == 0
            assert gradients[row, column] != 0 or moved[0] == moved[1], "not sent: it changes nothing"
    assert nothing > 5


@pytest.mark.parametrize("model", ["deepfm", "dlrm"])
def test_bytes_are_those_predicted_and_it_learns(ranks, model):
    options = DEEPFM if model == "deepfm" else {"dim": 4, "hidden": [8], "bottom": [8]}
    case = Case(model, options, "substitute", bags=(), sums=0.1, sizes=(16,) * 3, last=(16,) * 3, updates=30)
    answers = ranks.together(3, train_together, case)
    whole = ranks.together(3, train_together, Case(**{**vars_of(case), "sums": 1.0}))
    measured, predicted = totals(answers, 0), totals(answers, 1)
    plain = totals(whole, 0)
    # Predicted as if each sample sent all that it may: fewer where a shard holds few of its fields.
    assert 0 < measured["sums"] <= predicted["sums"] <= 0.3 * plain["sums"]
    assert 0 < measured["sums_places"] <= predicted["sums_places"] * 1.01
    losses = {number: loss for answer in answers for number, (loss, _) in answer["losses"].items()}
    ordered = [losses[number] for number in sorted(losses)]
    assert np.mean(ordered[-15:]) < np.mean(ordered[:15])


def vars_of(case):
    return {name: getattr(case, name) for name in case.__dataclass_fields__}


def totals(answers, which):
    found = {}
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        for counted in answer["counted"]:
            for kind, size in counted[which].values.items():
                found[kind] = found.get(kind, 0) + size
    return found


def test_auto_substitutes_where_that_is_cheaper_thinned():
    """A model whose sums take a little more than its rows takes rows; with a tenth of the sums it takes those."""
    everybody = Roles(tuple(range(4)), tuple(range(4)))
    load = Load(1000, 20_000, 8_000)

    def plan(sums):
        return choose(Shape((RowPart("embedding", 16, None),), everybody, 20, 0, (1000,) * 4, sums=sums), "auto", load)

    assert plan(1.0).modes == plan(0.9).modes == {"embedding": "rows"}
    thin = plan(0.02)
    assert thin.modes == {"embedding": "fields"}
    assert thin.predicted["chosen"].value_bytes < thin.predicted["rows"].value_bytes
    assert numbers(thin.shape, thin.modes) == 320
