"""The byte model's numbers by hand, and the choice that follows from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.exchange.cost import (
    Load,
    Roles,
    RowPart,
    Shape,
    break_even,
    choose,
    id_bytes,
    mean_sent,
    numbers,
    push_pull,
)
from paceline.models.base import Inputs
from paceline.models.classic import FM, DeepFM
from paceline.models.readers import Reader, readers_of


def all_both(ranks: int) -> Roles:
    return Roles(tuple(range(ranks)), tuple(range(ranks)))


def shape_of(ranks: int, fields: int, dim: int, hidden: int, placement: str = "field", linear: int = 0) -> Shape:
    """FM + linear [+ first layer]. The byte model by hand leaves the linear weight out of moved rows: linear = 0."""
    readers = [Reader("embedding", "factor", (dim + 1,), 0, False)]
    if hidden:
        readers.append(Reader("embedding", "first", (hidden,), fields * dim * hidden, True))
    parts = [RowPart("embedding", dim, tuple(readers))]
    if linear:
        parts.insert(0, RowPart("linear", 1, (Reader("linear", "linear", (), 0, True, 0),)))
        readers[0] = Reader("embedding", "factor", (dim + 1,), 0, False, 0)
        parts[1] = RowPart("embedding", dim, tuple(readers))
    total = fields * dim * hidden
    return Shape(tuple(parts), all_both(ranks), fields, 0, (total // ranks,) * ranks, placement=placement)


ROWS, PARTIALS = {"embedding": "rows"}, {"embedding": "partials"}


def bytes_of(shape: Shape, modes, load: Load) -> float:
    values = mean_sent(shape, modes, load).values
    return sum(n for kind, n in values.items() if kind != "norms")


def test_bytes_by_hand():
    load = Load(512, 512 * 26, 512 * 26)  # one id per field, none twice
    deep = shape_of(4, 26, 16, 256)
    assert bytes_of(deep, ROWS, load) == 1_916_928
    assert bytes_of(deep, PARTIALS, load) == 3_354_624
    factor = shape_of(4, 26, 16, 0)
    assert bytes_of(factor, ROWS, load) == 1_277_952
    assert bytes_of(factor, PARTIALS, load) == 208_896
    assert mean_sent(factor, PARTIALS, load).values["norms"] == 12


RATIOS = [
    ((26, 16, 0), (0.08, 0.16, 0.33, 0.65, 1.31), 24.5),
    ((26, 16, 256), (0.88, 1.75, 3.5, 7.0, 14.0), 2.3),
    ((200, 16, 256), (0.11, 0.23, 0.46, 0.91, 1.82), 17.6),
    ((26, 64, 256), (0.26, 0.51, 1.03, 2.06, 4.12), 7.8),
]


@pytest.mark.parametrize(("job", "ratios", "even"), RATIOS)
def test_the_table_of_ratios_and_where_they_cross_one(job, ratios, even):
    fields, dim, hidden = job
    load = Load(512, 512 * fields, 512 * fields, bits=0.0)  # as in the paper's model: values alone decide
    for ranks, ratio in zip((2, 4, 8, 16, 32), ratios, strict=True):
        shape = shape_of(ranks, *job)
        assert bytes_of(shape, PARTIALS, load) / bytes_of(shape, ROWS, load) == pytest.approx(ratio, abs=0.0051)
    found = break_even(fields, dim, 512, dim + 1 + hidden, hidden)
    assert found == pytest.approx(even, abs=0.05)
    for ranks, wins in ((int(found), True), (int(found) + 1, False)):
        plan = choose(shape_of(ranks, *job), "auto", load)
        assert (plan.modes["embedding"] != "rows") == wins


def test_with_the_linear_weight_in_the_row_break_even_is_the_number_of_fields():
    load = Load(512, 512 * 26, 512 * 26, bits=0.0)
    for ranks, modes in ((25, "partials"), (27, "rows")):
        shape = shape_of(ranks, 26, 16, 0, "hash", linear=1)
        assert numbers(shape, {"linear": "partials", "embedding": "partials"}) == 17
        assert set(choose(shape, "auto", load).modes.values()) == {modes}


def test_a_first_layer_placed_by_hash_pays_for_its_gradient():
    load = Load(512, 512 * 200, 512 * 200)
    by_field, by_hash = (bytes_of(shape_of(4, 200, 16, 256, p), PARTIALS, load) for p in ("field", "hash"))
    weights = 200 * 16 * 256
    assert by_hash - by_field == 4 * weights * (2 * 3 / 4 + 3)


def test_pooled_rows_of_a_field_on_one_shard_cost_one_row_a_field():
    load = Load(512, 512 * 260, 512 * 260)
    fields = {"embedding": "fields"}
    assert bytes_of(shape_of(4, 26, 16, 0), fields, load) == 4 * 3 / 4 * 2 * 512 * 26 * 16
    assert bytes_of(shape_of(4, 26, 16, 0, "hash"), fields, load) == 4 * 2 * 3 * 512 * 26 * 16


def test_rows_that_come_twice_are_moved_once():
    shape = shape_of(2, 26, 16, 0)
    assert bytes_of(shape, ROWS, Load(512, 512 * 26, 1000)) == 4 / 2 * 2 * 1000 * 16
    plan = choose(shape, "auto", Load(512, 512 * 26, 500))
    assert plan.modes == ROWS


def test_push_and_pull_sends_each_row_and_its_gradient_and_its_id_once():
    load = Load(100, 1000, 300)
    servers = Shape((RowPart("embedding", 17, None),), Roles((2,), (0, 1)), 10, 0, (50,))
    found = push_pull(servers, load)
    assert found.values == {"rows": 4 * 17 * 2 * 2 * 300 / 3, "dense": 4 * 50 * 2 * 2 / 3}
    assert found.ids == {"ids": 8 * 2 * 300 / 3}


def test_nothing_is_sent_alone():
    plan = choose(shape_of(1, 26, 16, 256), "auto", Load(512, 512 * 26, 4000))
    assert plan.modes == ROWS
    assert all(found.value_bytes == 0 == found.id_bytes for found in plan.predicted.values())


def test_readers_of_one_part_go_together():
    """DeepFM reads its embeddings by two operators: both are given partial sums or neither is."""
    model = DeepFM(Inputs(tuple("abcd"), 0), dim=4, hidden=[8])
    readers = readers_of(model, 4, 0)
    parts = (RowPart("linear", 1, readers["linear"]), RowPart("embedding", 4, readers["embedding"]))
    shape = Shape(parts, all_both(2), 4, 0, (100, 100))
    assert numbers(shape, {"linear": "partials", "embedding": "partials"}) == 4 + 1 + 8
    assert numbers(shape, {"linear": "partials", "embedding": "fields"}) == 4 * 4 + 1
    assert numbers(shape, {"linear": "rows", "embedding": "partials"}) == 4 + 1 + 8
    plan = choose(shape, "substitute", Load(64, 256, 200))
    assert set(plan.by_part["embedding"]) == {"rows", "fields", "partials"}
    assert plan.by_part["linear"]["partials"] == 4 * 2 * 64 + 4


def test_bags_travel_field_by_field_where_an_operator_needs_them_whole():
    readers = readers_of(FM(Inputs(tuple("abcde"), 0), dim=4), 5, 0)
    parts = (RowPart("linear", 1, readers["linear"]), RowPart("embedding", 4, readers["embedding"]))
    modes = {"linear": "partials", "embedding": "partials"}
    assert numbers(Shape(parts, all_both(2), 3, 2, (0, 0)), modes) == 4 + 1 + 2 * 4


@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([4, 16, 64]),
    st.sampled_from([0, 32, 256]),
    st.integers(1, 2000),
    st.floats(0.01, 1),
    st.floats(1, 30),
    st.sampled_from(["hash", "field"]),
)
def test_the_choice_is_never_dearer_than_an_alternative(n, fields, dim, hidden, samples, new, each, placement):
    shape = shape_of(n, fields, dim, hidden, placement, linear=1)
    positions = samples * fields * each
    plan = choose(shape, "auto", Load(samples, positions, max(positions * new, 1)))
    assert plan.predicted["chosen"].bytes <= min(plan.predicted[name].bytes for name in ("rows", "substitute"))


def test_rows_are_moved_where_positions_cost_more_than_sums_save():
    """LR, 4 nodes, 100 ids a sample, a twentieth distinct: sums alone are smaller than rows, with positions larger."""
    readers = (Reader("linear", "linear", (), 0, True),)
    shape = Shape((RowPart("linear", 1, readers),), all_both(4), 8, 2, (0,) * 4)
    load = Load(512, 51_200, 2_560, bits=7.5)
    plan = choose(shape, "auto", load)
    rows, sums = plan.predicted["rows"], plan.predicted["substitute"]
    assert sums.value_bytes < rows.value_bytes
    assert plan.modes == {"linear": "rows"}
    assert plan.predicted["chosen"].bytes == rows.bytes < sums.bytes
    assert plan.by_part["linear"] == {"rows": rows.value_bytes, "partials": sums.value_bytes, "fields": 10 * 12288 + 12}
    assert sums.ids["positions"] == 3 / 4 * 51_200 * 7.5 / 8


def test_known_ids_cost_what_a_random_set_of_those_listed_does():
    all_new, none_new = Load(512, 1000, 1000), Load(512, 1000, 1000, fresh=0, listed=16_000)
    assert id_bytes(all_new) == 8000
    entropy = 16 * (1 / 16 * 4 + 15 / 16 * 0.0931)  # bits of an id: each is in the set with a probability of 1/16
    assert 8 * id_bytes(none_new) / 1000 == pytest.approx(entropy + 0.2, rel=1e-3)
    assert id_bytes(Load(512, 1000, 1000, fresh=0, listed=1000)) == 25, "all that are listed: nothing but overhead"
