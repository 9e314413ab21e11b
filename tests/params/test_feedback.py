"""Hard thresholds with error feedback (DCT-DP), against the note's test vectors and invariants."""

import pytest
import torch

from paceline.params.feedback import Feedback, Thinning, kept_entries


def feedback(sizes, keep, refresh, smallest=1):
    return Feedback(sizes, Thinning(keep, refresh, smallest))


def test_the_notes_three_steps():
    made = feedback([4], 0.5, 2)
    steps = [
        ([0.5, -0.1, 0.3, -0.7], 0.5, [0.5, 0, 0, -0.7], [0, -0.1, 0.3, 0]),
        ([0.2, -0.3, 0.1, 0.1], 0.5, [0, 0, 0, 0], [0.2, -0.4, 0.4, 0.1]),
        ([0, -0.25, 0.15, 0.05], 0.55, [0, -0.65, 0.55, 0], [0.2, 0, 0, 0.15]),
    ]
    total = torch.zeros(4)
    for gradient, threshold, sent, held in steps:
        got = made.filter(torch.tensor(gradient))
        total += got
        torch.testing.assert_close(got, torch.tensor(sent, dtype=torch.float32))
        torch.testing.assert_close(made.held, torch.tensor(held, dtype=torch.float32))
        assert float(made.thresholds[0]) == pytest.approx(threshold)
    torch.testing.assert_close(total + made.held, torch.tensor([0.7, -0.65, 0.55, -0.55]))


def test_nothing_is_lost_bit_by_bit():
    torch.manual_seed(0)
    sizes = [1000, 3, 5000]
    made = feedback(sizes, 0.01, 7, smallest=256)
    for _ in range(40):
        gradient, before = torch.randn(sum(sizes)), made.held.clone()
        sent = made.filter(gradient)
        assert torch.equal(sent + made.held, gradient + before)
        assert not (sent.bool() & made.held.bool()).any()
        for held, threshold in zip(made.held.split(sizes), made.thresholds, strict=True):
            assert held.numel() < 256 or float(held.abs().max()) < float(threshold)
        assert not made.held[1000:1003].any(), "small tensors go whole"


def test_a_threshold_is_renewed_when_it_is_due_and_lets_out_as_many_entries_as_asked():
    torch.manual_seed(1)
    made = feedback([1000], 0.01, 5)
    thresholds = []
    for step in range(20):
        made.filter(torch.randn(1000) / (step + 1))
        thresholds.append(float(made.thresholds[0]))
        if step % 5 == 0:
            assert made.sent == 10
    assert [thresholds[i : i + 5] for i in range(0, 20, 5)] == [[thresholds[i]] * 5 for i in range(0, 20, 5)]
    assert len(set(thresholds)) == 4


def test_everything_kept_is_no_filter():
    gradient = torch.randn(100)
    assert feedback([100], 1.0, 10).filter(gradient) is gradient


def test_zeros_are_never_sent():
    made = feedback([100], 0.5, 10)
    gradient = torch.zeros(100)
    gradient[:3] = 1.0
    assert torch.equal(made.filter(gradient), gradient)
    assert made.sent == 3
    assert float(made.thresholds[0]) == 0.0


def test_a_share_as_it_was_written():
    assert kept_entries(1 - 0.99, 100) == 1
    assert kept_entries(0.001, 100) == 1
    assert kept_entries(0.25, 10) == 3


def test_it_goes_on_from_what_it_gave():
    torch.manual_seed(2)
    one, other = feedback([300, 400], 0.1, 3), feedback([300, 400], 0.1, 3)
    for _ in range(4):
        one.filter(torch.randn(700))
    one.steps += 5_000_000  # beyond what float32 counts exactly when it is odd and large
    other.load(one.state())
    assert other.steps == one.steps
    for _ in range(4):
        gradient = torch.randn(700)
        assert torch.equal(one.filter(gradient), other.filter(gradient))
    with pytest.raises(ValueError, match="700 numbers"):
        other.load(torch.zeros(700))


def test_a_snapshot_before_the_next_version_has_gradients_of_this_one_computed_again():
    torch.manual_seed(4)
    made = feedback([300], 0.1, 3)
    made.filter(torch.randn(300), 0)
    before = made.state()
    made.filter(torch.randn(300), 1)
    made.filter(torch.randn(300), 1)
    assert torch.equal(made.state(1), before)
    assert not torch.equal(made.state(2), before)
    assert torch.equal(made.state(2), made.state())


def test_a_gradient_that_does_not_count_is_taken_back():
    torch.manual_seed(5)
    one, other = feedback([300], 0.1, 3), feedback([300], 0.1, 3)
    for step in range(7):
        gradient = torch.randn(300)
        if step in (0, 3, 4):
            one.filter(torch.randn(300), step)
            one.undo()
            one.undo()  # once is enough
        assert torch.equal(one.filter(gradient, step), other.filter(gradient, step))
    assert torch.equal(one.state(), other.state())


def test_of_those_who_load_the_first_does():
    made, state = feedback([300], 0.1, 3), feedback([300], 0.1, 3)
    state.filter(torch.randn(300))
    made.load_once(state.state())
    assert torch.equal(made.state(), state.state())
    made.load_once(torch.zeros(303))
    assert torch.equal(made.state(), state.state())


def test_the_largest_do_better_than_random_entries():
    """A quadratic: gradients of which one entry in ten is sent."""

    def train(choose):
        torch.manual_seed(3)
        curvature = torch.logspace(-1, 1, 500)
        x = torch.ones(500)
        for _ in range(60):
            x = x - 0.05 * choose(curvature * x)
        return float((curvature * x.square()).sum())

    made = feedback([500], 0.1, 1)
    largest = train(made.filter)
    at_random = train(lambda g: torch.where(torch.rand(500) < 0.1, g, 0.0))
    assert largest < at_random
