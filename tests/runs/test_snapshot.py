"""Snapshots out of pieces: increments, any number of shards, damage, what is removed."""

import json

import numpy as np
import pytest
import torch
from shards import Shards, assert_same, named, pieces_in
from tools import job, synthetic, train

from paceline import checkpoint
from paceline.errors import LossError, RunDirError, StorageError, TrainingError
from paceline.evaluate import evaluate_run
from paceline.exchange.direct import DirectRoute
from paceline.keeper import Keeper


def test_a_chain_of_increments_is_a_whole_snapshot_bitwise(tmp_path):
    made, kinds = Shards(1), []
    for version in range(1, 25):
        made.train(version, version, share=0.03)
        [piece] = made.save(tmp_path / "chain", keep=1)
        kinds.append(piece.rows[-1].name.split("-")[4])
        rest = sum(file.rows for file in piece.rows[1:])
        assert rest <= piece.rows[0].rows / 2
        made.since, chain = [None], made.since
        made.save(tmp_path / "whole", keep=1)
        made.since = chain
        one, other = (Shards(1).load(tmp_path / name) for name in ("chain", "whole"))
        assert_same(one, made)
        assert_same(other, made)
        assert one.since[0] == piece
        if version % 3 == 0:  # and a process that goes on from it goes on with increments
            made = one
    assert kinds[0] == "base"
    assert {"base", "delta"} <= set(kinds[3:])


def test_an_increment_holds_what_changed_and_no_more(tmp_path):
    made = Shards(1).train(1, 3, ids=4000, share=0.9)
    made.save(tmp_path)
    made.train(4, 4, ids=4000, share=0.02)
    changed = (made.state()["clocks"][:, 0] == 4).sum()
    new = np.array([-5, -6, -7])
    made.shards[0].table.find_or_insert(new)  # pulled, and never updated
    [copy] = made.take()
    assert copy.rows.ids.shape[0] == changed + 3
    [piece] = made.save(tmp_path)
    assert [file.rows for file in piece.rows] == [piece.rows[0].rows, changed + 3]
    assert_same(Shards(1).load(tmp_path), made)
    again = made.save(tmp_path)[0]  # the same version once more: nothing to write but the dense parameters
    assert again.rows == piece.rows
    made.shards[0].table.find_or_insert(new * 10)
    third = made.save(tmp_path)[0]
    assert [file.rows for file in third.rows] == [*(file.rows for file in piece.rows), 3]
    assert pieces_in(tmp_path) == named(tmp_path)
    assert_same(Shards(1).load(tmp_path), made)


@pytest.mark.parametrize("dense", ["adagrad", "adam", "adagrad_swap"])
@pytest.mark.parametrize("before", [1, 2, 3, 4])
def test_any_number_of_shards_reads_what_another_wrote(tmp_path, before, dense):
    made = Shards(before, dense)
    for version in (3, 4, 5, 6):
        made.train(max(made.shards[0].version + 1, 1), version, **({} if version == 3 else {"share": 0.02}))
        made.save(tmp_path / "snapshots", keep=2)
    assert any(len(piece.rows) > 1 for piece in made.since)
    for after in (1, 2, 3, 4):
        loaded = Shards(after, dense).load(tmp_path / "snapshots")
        assert_same(loaded, made)
        assert (loaded.since == made.since) == (before == after)
        pieces = loaded.train(7, 8).save(tmp_path / f"{after}") if before != after else []
        assert all(len(piece.rows) == 1 for piece in pieces)
        once_more = Shards(before, dense).load(tmp_path / "snapshots").train(7, 8)
        if before != after:
            assert_same(once_more, loaded)
            assert_same(Shards(before, dense).load(tmp_path / f"{after}"), loaded)


def test_a_stopped_cluster_goes_on_bitwise_as_one_that_never_stopped(tmp_path):
    whole = Shards(1, "adagrad_swap").train(1, 12)
    Shards(3, "adagrad_swap").train(1, 5).save(tmp_path)
    Shards(2, "adagrad_swap").load(tmp_path).train(6, 9).save(tmp_path)
    assert_same(Shards(4, "adagrad_swap").load(tmp_path).train(10, 12), whole)


@pytest.mark.parametrize("what", ["delta", "dense", "slots", "state.json", "manifest.json", "gone", "cut"])
def test_a_damaged_snapshot_is_passed_over_and_forgotten(tmp_path, what):
    made = Shards(2).train(1, 5)
    made.save(tmp_path, keep=2)
    made.train(6, 6, share=0.02).save(tmp_path, keep=2)
    newest = tmp_path / "000000006"
    if what.endswith("json"):
        path = newest / what
    else:
        kind = what if what in ("dense", "slots") else "delta"
        path = next((tmp_path / "pieces").glob(f"000000006-1-of-2-{kind}-*"))
    if what == "gone":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again = Shards(2).load(tmp_path)
    assert_same(again, Shards(1).train(1, 5))
    # With keep=1 as well the good one replaces the damaged one, which is of a future that was given up.
    again.save(tmp_path, keep=1)
    assert [path.name for path in tmp_path.glob("[0-9]*")] == ["000000005"]
    again.train(6, 6).save(tmp_path, keep=1)
    assert pieces_in(tmp_path) == named(tmp_path)
    assert_same(Shards(2).load(tmp_path), again)


def test_what_is_left_is_what_manifests_name(tmp_path):
    made = Shards(2)
    for version in range(1, 12):
        made.train(version, version, share=0.03)
        made.save(tmp_path, keep=3)
        assert pieces_in(tmp_path) == named(tmp_path)
        assert len(list(tmp_path.glob("[0-9]*"))) == min(version, 3)
    committed = made.since
    made.train(12, 12)
    garbage = [checkpoint.write(tmp_path, copy) for copy in made.take()]
    assert pieces_in(tmp_path) > named(tmp_path)
    checkpoint.discard(tmp_path, [*garbage, *committed])  # what is committed stays
    assert pieces_in(tmp_path) == named(tmp_path)
    for copy in made.take():
        checkpoint.write(tmp_path, copy)  # never committed
    made.train(13, 13).save(tmp_path, keep=3)  # goes on from version 11
    assert pieces_in(tmp_path) == named(tmp_path)
    assert_same(Shards(3).load(tmp_path), made)
    made.train(14, 14).take()
    checkpoint.write(tmp_path, made.take()[0])
    checkpoint.clean(tmp_path)
    assert pieces_in(tmp_path) == named(tmp_path)
    checkpoint.set_aside(tmp_path, 11)
    assert [path.name for path in sorted(tmp_path.glob("[0-9]*"))] == ["000000010", "000000011"]
    assert pieces_in(tmp_path) == named(tmp_path)


def test_pieces_of_different_versions_or_partitions_are_no_snapshot(tmp_path):
    two, three = Shards(2).train(1, 2), Shards(3).train(1, 2)
    a, b = (checkpoint.write(tmp_path, copy) for copy in two.take())
    c, _, _ = (checkpoint.write(tmp_path, copy) for copy in three.take())
    late = checkpoint.write(tmp_path, two.train(3, 3).take()[1])
    for pieces in ([], [a], [a, a], [a, late], [c, b], [a, b, c]):
        with pytest.raises(TrainingError, match="a snapshot of version 2 cannot be made of"):
            checkpoint.commit(tmp_path, 2, pieces, {}, 1)
    assert checkpoint.newest(tmp_path) is None
    (tmp_path / "pieces" / b.rows[0].name).write_bytes(b"")
    with pytest.raises(StorageError, match="not what was written"):
        checkpoint.commit(tmp_path, 2, [b, a], {}, 1)
    assert not list(tmp_path.glob(".*"))
    assert checkpoint.Piece.from_json(json.loads(json.dumps(a.to_json()))) == a


@pytest.mark.parametrize("part", ["rows", "dense"])
def test_what_is_not_finite_is_not_stored(tmp_path, part):
    made = Shards(1).train(1, 3)
    made.save(tmp_path)
    before = pieces_in(tmp_path)
    made.train(4, 4, share=0.01)
    [copy] = made.take()
    if part == "rows":
        copy.rows.weights[0, 1] = np.nan
    else:
        copy.dense["0.bias"][0] = torch.inf
    with pytest.raises(LossError, match=r"version 4.*optimizer\.sparse\.lr"):
        checkpoint.write(tmp_path, copy)
    assert pieces_in(tmp_path) == before


def test_another_model_or_optimizer_is_refused(tmp_path):
    Shards(2).train(1, 3).save(tmp_path)
    with pytest.raises(RunDirError, match=r"rows of another shape.*use the configuration"):
        Shards(1, sparse="sgd").load(tmp_path)
    other, found = Shards(1), checkpoint.newest(tmp_path)
    other.shards[0].dense.named.pop()
    with pytest.raises(RunDirError, match=r"parameter '3.bias' is \(1,\) in the checkpoint and absent in the model"):
        checkpoint.restore(found, other.shards[0])


def test_another_format_is_told(tmp_path):
    old = tmp_path / "000000007"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"format": 3, "files": {}}))
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "000000009-0-of-1-base-0.arrow").write_bytes(b"who knows whose")
    checkpoint.clean(tmp_path)
    assert len(pieces_in(tmp_path)) == 1
    with pytest.raises(RunDirError, match="written in format 3, this version reads 4"):
        checkpoint.newest(tmp_path)


def test_what_the_writer_meets_is_raised_by_whoever_asks_next(tmp_path):
    made = Shards(1).train(1, 2)
    keeper = Keeper(tmp_path, 2, DirectRoute(made.shards[0]))
    keeper.write(keeper.take(), {"a": 1}, -1, None)
    keeper.wait()
    first = keeper.since
    (tmp_path / "pieces").rename(tmp_path / "elsewhere")
    (tmp_path / "pieces").write_text("a file where there should be a folder")
    made.train(3, 3, share=0.01)
    keeper.write(keeper.take(), {"a": 2}, -1, None)
    with pytest.raises(StorageError, match="pieces"):
        keeper.wait()
    assert keeper.free()  # told once
    assert keeper.since == first
    (tmp_path / "pieces").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "pieces")
    state = {"a": [3]}
    keeper.write(keeper.take(), state, -1, None)
    state["a"].append(4)
    keeper.close()
    found = checkpoint.newest(tmp_path)
    assert (found.version, found.state["a"]) == (3, [3])
    assert_same(Shards(1).load(tmp_path), made)
    assert pieces_in(tmp_path) == named(tmp_path)


def test_a_run_that_shards_wrote_can_be_evaluated(tmp_path):
    """One process reads two shards' snapshot of a real run: the same numbers as from its own."""
    log = synthetic(tmp_path / "log")
    config = job(log, data__days=[str(log / "day_0.tsv.gz")], checkpoint__every=500)
    train(config, log, tmp_path / "run")
    folder, day = tmp_path / "run" / "checkpoints", [str(log / "day_1.tsv.gz")]
    told = evaluate_run(tmp_path / "run", day)
    found = checkpoint.newest(folder)
    apart = split(config, log, found)
    pieces = [checkpoint.write(folder, checkpoint.take(shard, i, 2)) for i, shard in enumerate(apart)]
    statistics = {"pooled": torch.zeros(0)}
    checkpoint.commit(folder, found.version, pieces, found.state, keep=1, statistics=statistics)
    assert len(checkpoint.newest(folder).pieces) == 2
    assert evaluate_run(tmp_path / "run", day) == told


def split(config, log, found):
    """The shards of two that hold what the snapshot does."""
    from paceline.assembly import assemble
    from paceline.params.dense import DenseBlock, make_optimizer, slices
    from paceline.params.shard import Shard

    made = []
    for index in range(2):
        fresh = assemble(config, log)
        model = fresh.replicas[0].model
        names = slices(model, 2)[index]
        dense = config.optimizer.dense
        block = DenseBlock(model, make_optimizer(dense.name, dict(dense.options), model, names), names)
        made.append(Shard(fresh.shard.table, block, "global_mean"))
        checkpoint.restore(found, made[-1], index, 2)
    return made
