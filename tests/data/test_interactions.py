"""The loader of interactions: what is trained on, what is held out, what is drawn, and what is told of bad input."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import real_data
from paceline.assembly import make_source
from paceline.batch import Cursor, Span
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import ConfigError, DataError
from paceline.jobfile import check, load_config
from paceline.kernels import interactions as kernels

TYPES = ["view", "cart", "buy"]


def table(users=30, items=50, rows=600, seed=0):
    """Interactions with repeats, and a time that is not their order."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(0, users, rows)],
            "item": (rng.integers(0, items, rows) + 2**60).tolist(),
            "type": rng.choice(TYPES, rows, p=[0.6, 0.25, 0.15]),
            "when": rng.permutation(rows).astype(np.float64),
        }
    )


def config(path, kind="csv", name="log", **interactions):
    values = {"user": "user", "item": "item", "type": "type", "types": TYPES, **interactions}
    return check({"data": {"format": kind, "days": str(path)}, "interactions": values, "model": "cml"}, name)


def written(folder, frame, name="log.csv"):
    frame.write_csv(folder / name)
    return folder / name


def log_of(path, **interactions):
    kind = "parquet" if path.suffix == ".parquet" else "tsv" if path.suffix == ".tsv" else "csv"
    return make_source(config(path, kind, **interactions), Path())


def triples(found, of_user, of_item):
    """The training interactions as (user, item, type) in words."""
    return sorted(
        (of_user[int(found.user_ids[u])], of_item[int(found.item_ids[i])], TYPES[t])
        for u, i, t in zip(found.users, found.items, found.types, strict=True)
    )


def names(frame):
    """(id -> user, id -> item), by the documented hash."""
    from paceline.kernels.hashing import field_seed, text_id

    def ids(column):
        seed = int(field_seed(column))
        values = sorted(set(map(str, frame[column].to_list())))
        return {int(np.array(text_id(v.encode(), seed), np.uint64).view(np.int64)): v for v in values}

    return ids("user"), ids("item")


def told(frame):
    return sorted((r["user"], str(r["item"]), r["type"]) for r in frame.to_dicts())


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_every_format_gives_the_same_interactions_with_64_bit_ids(tmp_path, ending):
    frame = table()
    path = tmp_path / f"log.{ending}"
    frame.write_parquet(path) if ending == "parquet" else frame.write_csv(
        path, separator="\t" if ending == "tsv" else ","
    )
    found = log_of(path).set_of([str(path)])
    assert triples(found, *names(frame)) == told(frame)
    assert len(found.item_ids) == frame["item"].n_unique()  # above 2^53: as floats they would be fewer


def test_an_epoch_is_a_shuffle_of_everything_and_each_is_another(tmp_path):
    frame = table()
    path = written(tmp_path, frame)
    log = log_of(path)
    epochs = []
    for day in range(3):
        batches = list(day_batches(log, [str(path)], Plan(day, 64)))
        assert [b.samples for b in batches] == [64] * 9 + [24]
        ids = np.concatenate([b.ids[:, :2] for b in batches])
        types = np.concatenate([b.dense[:, 0] for b in batches]).astype(int)
        of_user, of_item = names(frame)
        rows = [(of_user[int(u)], of_item[int(i)], TYPES[t]) for (u, i), t in zip(ids.tolist(), types, strict=True)]
        assert sorted(rows) == told(frame)
        epochs.append(rows)
        mixed = types[:64]  # triples of all types are shuffled together
        assert len(set(mixed.tolist())) == 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("harder", [0.0, 0.5, 1.0])
def test_a_negative_never_has_the_type_of_its_user(tmp_path, harder):
    """Our note on MRMN, invariant 9; the harder ones have weaker feedback."""
    frame = table(users=8, items=200)
    path = written(tmp_path, frame)
    seen = {(r["user"], str(r["item"]), r["type"]) for r in frame.to_dicts()}
    of_user, of_item = names(frame)
    log = log_of(path, harder=harder, negatives=6)
    drawn, weaker, could = 0, 0, 0
    for batch in day_batches(log, [str(path)], Plan(0, 100)):
        for ids, kind in zip(batch.ids.tolist(), batch.dense[:, 0].astype(int), strict=True):
            user, negatives = of_user[ids[0]], [of_item[i] for i in ids[2:]]
            assert not [n for n in negatives if (user, n, TYPES[kind]) in seen]
            if kind == 2:
                own = {i for u, i, t in seen if u == user and t != "buy"} - {
                    i for u, i, t in seen if u == user and t == "buy"
                }
                could += len(negatives) * bool(own)
                weaker += sum(n in own for n in negatives)
            drawn += len(negatives)
    assert drawn == 600 * 6
    share = weaker / could
    assert share == 1.0 if harder == 1.0 else 0.5 < share < 0.8 if harder else share < 0.45


@given(st.sets(st.integers(0, 19), max_size=19), st.integers(0, 2**63 - 1))
def test_negatives_are_uniform_over_what_is_not_observed(observed, seed):
    """Every absent item can come, no other does, and each comes about as often."""
    starts, found = np.array([0, len(observed)]), np.array(sorted(observed), np.int32)
    rows, out = np.zeros(400, np.int64), np.empty((400, 5), np.int64)
    places = np.arange(400)
    kernels.draw_negatives(seed, 3, places, rows, starts, found, True, starts, found, 0.0, 20, out)
    counts = np.bincount(out.reshape(-1), minlength=20)
    absent = sorted(set(range(20)) - observed)
    assert sorted(np.flatnonzero(counts)) == absent
    expected = 2000 / len(absent)
    assert np.abs(counts[absent] - expected).max() < 6 * expected**0.5 + 1
    again = np.empty((1, 5), np.int64)
    kernels.draw_negatives(seed, 3, places[7:8], rows[:1], starts, found, True, starts, found, 0.0, 20, again)
    assert again[0].tolist() == out[7].tolist()


@given(st.sets(st.integers(0, 29), max_size=18), st.integers(0, 29), st.integers(0, 2**63 - 1))
def test_candidates_are_distinct_unseen_and_not_the_item_itself(observed, positive, seed):
    starts, found = np.array([0, len(observed)]), np.array(sorted(observed), np.int32)
    rows, out = np.zeros(20, np.int64), np.empty((20, 11), np.int64)
    assert kernels.draw_candidates(seed, rows, np.full(20, positive), starts, found, 30, out) == -1
    for drawn in out:
        assert len(set(drawn.tolist())) == 11
        assert not set(drawn.tolist()) & (observed | {positive})
    assert len({tuple(drawn) for drawn in out.tolist()}) > 1
    many = np.empty((20, 30), np.int64)
    assert kernels.draw_candidates(seed, rows, np.full(20, positive), starts, found, 30, many) == 0


def test_spans_are_read_again_bit_by_bit(tmp_path):
    """After a resume: first what was under way, then the rest, with the negatives of before."""
    path = written(tmp_path, table())
    whole = list(day_batches(log_of(path, harder=0.3), [str(path)], Plan(4, 50)))
    again = (whole[2].span, whole[5].span)
    plan = Plan(4, 50, whole[6].span.start, no_moments(0), again)
    resumed = list(day_batches(log_of(path, harder=0.3), [str(path)], plan))
    expected = [whole[2], whole[5], *whole[6:]]
    for one, other in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.dense, other.dense)
        assert Span.from_json(one.span.to_json()).to_json() == other.span.to_json()
    assert [b.following.start for b in resumed[:3]] == [Cursor(0, 300), Cursor(0, 300), Cursor(0, 350)]


@pytest.mark.parametrize("rows", ["last", "random"])
@pytest.mark.parametrize("all_types", [False, True])
def test_one_interaction_of_each_user_and_type_is_held_out(tmp_path, rows, all_types):
    frame = table()
    path = written(tmp_path, frame)
    chosen = ["buy", "view"]
    log = log_of(path, time="when", holdout={"rows": rows, "types": chosen, "all_types": all_types})
    found = log.set_of([str(path)])
    of_user, of_item = names(frame)
    tests = sorted(
        (of_user[int(found.user_ids[u])], of_item[int(found.item_ids[i])], TYPES[t])
        for u, i, t in zip(found.tests.users, found.tests.items, found.tests.types, strict=True)
    )
    assert {t for *_, t in tests} == set(chosen)
    distinct = frame.unique(["user", "item", "type"])
    for kind in chosen:
        several = distinct.filter(pl.col("type") == kind).group_by("user").len().filter(pl.col("len") >= 2)
        assert sorted(u for u, _, t in tests if t == kind) == sorted(several["user"].to_list())
    if rows == "last":
        for user, item, kind in tests:
            mine = frame.filter((pl.col("user") == user) & (pl.col("type") == kind)).sort("when")
            assert str(mine["item"][-1]) == item
    gone = {(u, i) for u, i, _ in tests} if all_types else set()
    stay = [row for row in told(frame) if row not in set(tests) and row[:2] not in gone]
    assert triples(found, of_user, of_item) == stay
    # Other rows and their order do not matter to what is held out at random.
    if rows == "random":
        other = written(tmp_path, frame.filter(pl.col("type") != "cart").reverse(), "other.csv")
        again = log_of(other, holdout={"rows": rows, "types": chosen, "all_types": all_types}).set_of([str(other)])
        same = {
            (int(again.user_ids[u]), int(again.item_ids[i]))
            for u, i, t in zip(again.tests.users, again.tests.items, again.tests.types, strict=True)
            if t == 2
        }
        assert {(of_user[u], of_item[i]) for u, i in same} == {(u, i) for u, i, t in tests if t == "buy"}


def test_test_files_and_trained_types(tmp_path):
    """Of types that are not trained on, items stay candidates and feedback stays feedback."""
    frame = table()
    path = written(tmp_path, frame)
    more = pl.DataFrame({"user": ["u1", "new"], "item": [7, 2**60], "type": ["buy", "view"]})
    tests = written(tmp_path, more, "test.csv")
    found = log_of(path, test=str(tests), train=["buy"]).set_of([str(path)])
    assert len(found.users) == (frame["type"] == "buy").sum()
    assert len(found.item_ids) == frame["item"].n_unique() + 1
    assert len(found.user_ids) == frame["user"].n_unique() + 1
    assert found.tests.types.tolist() == [0, 2]
    assert len(found.observed.found) == frame.unique(["user", "item", "type"]).height
    fewer = check(
        {
            "data": {"format": "csv", "days": str(path)},
            "interactions": {
                "user": "user", "item": "item", "holdout": {"rows": "random"}, "ranking": {"most": 9},
            },
        },
        "log",
    )  # fmt: skip
    assert fewer.model.name == "mrmn"
    assert len(make_source(fewer, Path()).set_of([str(path)]).tests.users) == 9


BAD_ROWS = [
    ("u1,,view,3", "line 22: the column 'item' is empty"),
    (",5,view,3", "line 22: the column 'user' is empty"),
    ("u1,5,look,3", r"line 22: the type 'look' is none of interactions.types \(view, cart, buy\)"),
    ("u1,5,view,soon", "line 22: the time 'when' is missing or no finite number"),
    ("u1,5,view", "line 22: 3 columns where 4 are expected"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[r for r, _ in BAD_ROWS])
def test_bad_rows(tmp_path, row, message):
    lines = table().write_csv().splitlines()
    path = tmp_path / "log.csv"
    path.write_text("\n".join([*lines[:21], row, *lines[21:]]) + "\n")
    keys = {"time": "when", "holdout": {"rows": "last"}}
    with pytest.raises(DataError, match=rf"{path}, {message}.*on_bad_row: skip"):
        log_of(path, **keys).set_of([str(path)])
    skipping = config(path, **keys).model_copy(
        update={"data": config(path).data.model_copy(update={"on_bad_row": "skip"})}
    )
    batches = list(day_batches(make_source(skipping, Path()), [str(path)], Plan(0, 100)))
    assert [len(b.skipped) for b in batches] == [1] + [0] * (len(batches) - 1)
    assert batches[0].skipped[0].line == 22
    assert not next(iter(day_batches(make_source(skipping, Path()), [str(path)], Plan(1, 100)))).skipped


def test_what_cannot_be_trained_on(tmp_path):
    path = written(tmp_path, pl.DataFrame({"user": ["a", "a"], "item": [1, 2], "type": ["view", "view"]}))
    with pytest.raises(DataError, match="feedback 'view' on each of the 2 items, so that no negative"):
        log_of(path).set_of([str(path)])
    other = written(tmp_path, table().filter(pl.col("type") == "view"), "views.csv")
    with pytest.raises(DataError, match=r"no interaction of the types \['buy'\] to train on"):
        log_of(other, train=["buy"]).set_of([str(other)])
    with pytest.raises(DataError, match="there is no column 'userid'; did you mean 'user'"):
        log_of(other, user="userid").set_of([str(other)])
    empty = tmp_path / "empty.csv"
    empty.write_text("user,item,type\n")
    with pytest.raises(DataError, match=r"empty\.csv: the file has no rows"):
        log_of(empty).set_of([str(empty)])
    with pytest.raises(DataError, match=r"interactions\.test: .*gone\.csv does not exist"):
        log_of(path, test="gone.csv")


JOB = {
    "data": {"format": "csv", "days": "log.csv"},
    "interactions": {"user": "user", "item": "item", "type": "type", "types": TYPES},
}
BAD_KEYS = [
    ("interactions.user=null", "interactions.user: "),
    ("interactions.itm=x", "interactions.itm: unknown key; did you mean 'item'"),
    ("interactions.item=user", "column 'user' is used twice"),
    ("interactions.type=null", "without `type`, .* there is one type only"),
    ("interactions.types=[a,a]", "each once"),
    ("interactions.types=[]", "each once"),
    ("interactions.target=look", r"target: 'look' is none of the types \(view, cart, buy\)"),
    ("interactions.train=[look]", "train: 'look' is none of the types"),
    ("interactions.train=[]", "train is empty; leave it out"),
    ("interactions.negatives=0", "interactions.negatives: 0"),
    ("interactions.harder=2", "interactions.harder: 2"),
    ("interactions.harder=.nan", "interactions.harder"),
    ("interactions.epochs=0", "interactions.epochs: 0"),
    ("interactions.holdout.rows=first", "interactions.holdout.rows: 'first'"),
    ("interactions.holdout.rows=last", "last needs `time`"),
    ("interactions.holdout={rows: random, types: [look]}", "holdout.types: 'look' is none of the types"),
    ("interactions.holdout={rows: random, all_types: often}", "interactions.holdout.all_types"),
    ("interactions.test=[]", "test: names no file"),
    ("interactions.ranking.at=[]", "must be one rank or more"),
    ("interactions.ranking.at=[0]", "each at least 1"),
    ("interactions.ranking.candidates=0", "interactions.ranking.candidates: 0"),
    ("interactions.ranking.most=0", "interactions.ranking.most: 0"),
    ("interactions.ranking.every=0", "interactions.ranking.every: 0"),
    ("features={label: y, categorical: [c]}", "features and interactions: a job has one of them"),
    ("data.format=libsvm", "interactions: for csv, tsv and parquet"),
    ("normalise=local_batch", "normalise: interactions have no dense inputs"),
]


@pytest.mark.parametrize(("change", "message"), BAD_KEYS, ids=[k for k, _ in BAD_KEYS])
def test_bad_keys(tmp_path, change, message):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "job.yaml", [change])


def test_both_ways_of_testing_are_one_too_many():
    with pytest.raises(ConfigError, match="holdout and test: either rows are held out, or files are given"):
        config("log.csv", holdout={"rows": "random"}, test="t.csv")


def test_types_are_needed_with_their_column():
    with pytest.raises(ConfigError, match="types: needed with `type`"):
        check({"data": JOB["data"], "interactions": {"user": "u", "item": "i", "type": "t"}}, "job")


def test_jobs_without_label_or_interactions_are_told_of_both():
    with pytest.raises(ConfigError, match="features: needed for csv.*interactions"):
        check({"data": JOB["data"]}, "job")


def test_retailrocket(tmp_path):
    """Real feedback of three types, read and held out as documented."""
    from zipfile import ZipFile

    frames = []
    with ZipFile(real_data("retailrocket") / "Retailrocket_Ecommerce.zip") as archive:
        for file, kind in (("view", "view"), ("add_to_cart", "cart"), ("purchase", "buy")):
            with archive.open(f"RetailRocket_Ecommerce/{file}_ecommerce.dat") as text:
                frame = pl.read_csv(text.read(), separator="\t")
            frames.append(frame.select(user="visitorid", item="itemid", type=pl.lit(kind)))
    frame = pl.concat(frames)
    path = written(tmp_path, frame)
    found = log_of(path, holdout={"rows": "random"}).set_of([str(path)])
    assert frame.height == 92_487
    assert (len(found.item_ids), len(found.user_ids)) == (8_885, 3_431)
    assert len(found.tests.users) == 488  # who bought two items or more
    assert len(found.users) == frame.height - 488
