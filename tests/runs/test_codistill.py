"""Codistillation: the note's vectors, burning in alone, teachers that are only read, groups that live and die alone."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from test_virtual import cluster
from tools import assert_same_state, interrupt_at, job, snapshot_of, state_of, synthetic

from paceline import checkpoint
from paceline.assembly import assemble, make_replica, make_shard
from paceline.batch import Bag, Batch, Cursor, Span
from paceline.data.encode import Block
from paceline.data.moments import no_moments
from paceline.data.share import Share
from paceline.data.stream import Plan, day_batches
from paceline.errors import ConfigError, RunDirError, TrainingError
from paceline.exchange.direct import Pulled
from paceline.groups import train_groups
from paceline.models.base import Inputs
from paceline.models.registry import build_model
from paceline.report.churn import churn
from paceline.runtimes.compute import Layout, Replica, StackedReplica
from paceline.runtimes.coordinator import Lease
from paceline.simulation import simulate
from paceline.teachers import Teachers
from paceline.training import train

PLACE = Span(0, Cursor(), Cursor(), no_moments(0))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


def group(log, number, **changes):
    options = {"groups": 2, "group": number, "burn_in": 1000, "every": 500}
    options |= {key.removeprefix("codistill__"): changes.pop(key) for key in list(changes) if key.startswith("codi")}
    return job(log, codistill=options, **changes)


@pytest.fixture(scope="module")
def peers(log, tmp_path_factory):
    """A directory in which group 1 has come to its end."""
    made = tmp_path_factory.mktemp("peers")
    train(group(log, 1), log, made / "group-1")
    return made


def beside(peers, folder):
    """A new directory with the same group 1, for a group 0 of one's own."""
    folder.mkdir()
    (folder / "group-1").symlink_to(peers / "group-1")
    return folder / "group-0"


def lessons(run):
    path = run / "lessons.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- the loss -------------------------------------------------------------------------------------------------


def one_number(distil):
    """A model of one id whose logit is the id's weight."""
    model = build_model("lr", {}, Inputs(("f",), 0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return Replica(model, Layout(model.parts(), 1, 0), "fp32", distil)


def gradient(replica, logits, labels, soft):
    """(loss, gradient by each logit times the samples)."""
    n = len(logits)
    ids = np.arange(n, dtype=np.int64).reshape(n, 1)
    batch = Batch(np.array(labels, np.float32), ids, (), np.zeros((n, 0), np.float32), None, PLACE, PLACE)
    batch = dataclasses.replace(batch, soft=None if soft is None else np.array(soft, np.float32))
    weights = np.array(logits, np.float32).reshape(n, 1)
    pulled = Pulled(np.arange(n), weights, np.arange(n, dtype=np.int32), np.zeros(0, np.int32))
    loss, found = replica.gradient(batch, pulled)
    return loss, found.row_gradients[:, 0] * n


@pytest.mark.parametrize(
    ("z", "t", "y", "phi", "by_label", "by_teacher", "total"),
    [
        (0.0, 0.8, 1, 0.693147, -0.5, -0.3, -0.8),
        (0.4, 0.25, 1, 0.513015, -0.401312, 0.348688, -0.052625),
        (-1.2, 0.1, 0, 0.263282, 0.231475, 0.131475, 0.362950),
    ],
)
def test_the_vectors_of_the_note(z, t, y, phi, by_label, by_teacher, total):
    loss, alone = gradient(one_number(1.0), [z], [y], None)
    assert loss == pytest.approx(phi, abs=1e-6)
    assert alone[0] == pytest.approx(by_label, abs=1e-6)
    told, taught = gradient(one_number(1.0), [z], [y], [t])
    assert told == loss  # what is reported stays the loss against the labels
    assert taught[0] == pytest.approx(total, abs=1e-6)
    assert taught[0] - alone[0] == pytest.approx(by_teacher, abs=1e-6)


def test_a_teacher_that_says_the_same_teaches_nothing_and_labels_may_be_mixed():
    z, alpha = [0.3, -2.0, 1.5], 0.7
    p = 1 / (1 + np.exp(-np.array(z)))
    _, alone = gradient(one_number(alpha), z, [1, 0, 0], None)
    _, same = gradient(one_number(alpha), z, [1, 0, 0], p)
    np.testing.assert_allclose(same, alone, atol=1e-6)
    soft = np.array([0.2, 0.9, 0.5])
    _, taught = gradient(one_number(alpha), z, [1, 0, 0], soft)
    mixed = (np.array([1, 0, 0]) + alpha * soft) / (1 + alpha)
    np.testing.assert_allclose(taught, (1 + alpha) * (p - mixed), atol=1e-6)


def test_stacked_gradients_are_the_same():
    """Two batches in one go, of which one has teachers."""
    replica = one_number(0.5)
    weights = [np.array([[0.4], [-1.0]], np.float32), np.array([[2.0], [0.1]], np.float32)]
    ids = np.arange(2, dtype=np.int64).reshape(2, 1)
    batches, pulled = [], []
    for k, soft in enumerate((None, np.array([0.9, 0.2], np.float32))):
        labels = np.array([1, k], np.float32)
        batches.append(Batch(labels, ids, (), np.zeros((2, 0), np.float32), None, PLACE, PLACE, soft=soft))
        pulled.append(Pulled(np.arange(2), weights[k], np.arange(2, dtype=np.int32), np.zeros(0, np.int32)))
    dense = torch.stack([replica.flat.clone() for _ in range(2)])
    made = StackedReplica(replica).gradients(batches, pulled, dense, torch.zeros(2, 0))
    for (loss, found, _), batch, pull in zip(made, batches, pulled, strict=True):
        expected_loss, expected = replica.gradient(batch, pull)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        np.testing.assert_allclose(found.row_gradients, expected.row_gradients, rtol=1e-5)


# --- the shares -----------------------------------------------------------------------------------------------


def test_shares_are_disjoint_and_together_everything(log):
    whole, parts = [], []
    for share in (None, Share(3, 0, 5), Share(3, 1, 5), Share(3, 2, 5)):
        made = assemble(job(log), log, replicas=1)
        plan = Plan(1, 64, moments=no_moments(len(made.schema.dense)), share=share)
        ids = [tuple(row) for b in day_batches(made.log, made.days[1], plan) for row in b.ids.tolist()]
        (whole if share is None else parts).append(ids)
    assert sorted(row for part in parts for row in part) == sorted(whole[0])
    assert all(abs(len(part) - 2000 / 3) < 100 for part in parts)


def test_a_row_belongs_to_a_group_by_where_it_stands():
    rows = np.arange(10_000, dtype=np.int64)
    mine = Share(2, 0, 1).mine(3, 4, rows)
    np.testing.assert_array_equal(Share(2, 0, 1).mine(3, 4, rows[777:]), mine[777:])
    np.testing.assert_array_equal(Share(2, 1, 1).mine(3, 4, rows), ~mine)
    assert abs(int(mine.sum()) - 5000) < 250
    for other in (Share(2, 0, 1).mine(4, 4, rows), Share(2, 0, 1).mine(3, 5, rows), Share(2, 0, 2).mine(3, 4, rows)):
        assert 4500 < int((other == mine).sum()) < 5500


def test_bags_follow_their_rows():
    n = 50
    lengths = np.arange(n) % 4
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bag = Bag(np.arange(offsets[-1]), offsets, np.arange(offsets[-1], dtype=np.float32))
    rows = np.arange(100, 100 + n)
    block = Block(2, rows, np.zeros(n, np.float32), rows.reshape(n, 1), (bag,), np.zeros((n, 0)), rows, (), 100 + n)
    share = Share(2, 1, 9)
    kept = share.of(block, 0)
    assert 0 < len(kept) < n
    assert kept.stop == block.stop
    for at, row in enumerate(kept.rows.tolist()):
        old = row - 100
        assert kept.ids[at, 0] == kept.groups[at] == row
        its, was = (b.ids[b.offsets[i] : b.offsets[i + 1]] for b, i in ((kept.bags[0], at), (bag, old)))
        np.testing.assert_array_equal(its, was)


# --- runs -----------------------------------------------------------------------------------------------------


def versions(run):
    return {int(p.name): snapshot_of(p) for p in (run / "checkpoints").glob("[0-9]*")}


def test_burning_in_is_bitwise_alone_and_the_next_update_is_not(log, peers, tmp_path):
    changes = {"checkpoint": {"every": 100, "keep": 1000}}
    train(group(log, 0, codistill__burn_in=10**9, **changes), log, tmp_path / "alone" / "group-0")
    taught = beside(peers, tmp_path / "taught")
    train(group(log, 0, **changes), log, taught)
    assert lessons(tmp_path / "alone" / "group-0") == []
    first = lessons(taught)[0]
    assert 1000 <= first["samples_read"] < 1000 + 32
    alone, other = versions(tmp_path / "alone" / "group-0"), versions(taught)
    shared = sorted(alone.keys() & other.keys())
    same = [v for v in shared if np.array_equal(alone[v][0]["weights"], other[v][0]["weights"])]
    assert same == shared[: len(same)]
    # The batch that was just read when the exchange came is the first with teachers; its update is the first to differ.
    ends = {v: other[v][2]["machine"]["account"]["applied"] for v in shared}
    assert all((ends[v] <= first["samples_read"]) == (v in same) for v in shared)
    assert 0 < len(same) < len(shared)


def test_without_weight_it_is_alone(log, peers, tmp_path):
    train(group(log, 0, codistill__burn_in=10**9), log, tmp_path / "alone" / "group-0")
    train(group(log, 0, codistill__weight=0.0), log, beside(peers, tmp_path / "taught"))
    assert lessons(tmp_path / "taught" / "group-0")
    assert_same_state(tmp_path / "alone" / "group-0", tmp_path / "taught" / "group-0")


def test_groups_start_from_other_numbers_and_learn_other_rows(log, peers, tmp_path):
    train(group(log, 0), log, beside(peers, tmp_path / "run"))
    ours, theirs = (state_of(tmp_path / "run" / f"group-{g}") for g in (0, 1))
    assert ours[2]["machine"]["account"]["read"] + theirs[2]["machine"]["account"]["read"] == 6000
    a, b = (make_shard(group(log, g)).dense.flat for g in (0, 1))
    assert not torch.equal(a, b)


def test_teachers_are_only_read_and_change_at_exchanges_only(log, peers, tmp_path):
    config = group(log, 0)
    teachers = Teachers(lambda: (make_shard(config), make_replica(config)))
    path = checkpoint.committed(peers / "group-1" / "checkpoints")[0]
    made = assemble(config, log, replicas=1)
    batches = list(day_batches(made.log, made.days[2], Plan(2, 64, moments=no_moments(len(made.schema.dense)))))
    first = teachers.taught(Lease(0, 0, 0, batches[0], 0, (str(path),)))
    held = teachers._held[path.parent]
    rows, flat = len(held.route.shard.table), held.replica.flat.clone()
    for batch in batches:
        taught = teachers.taught(Lease(0, 0, 0, batch, 0, (str(path),))).batch
        assert taught.soft.shape == (batch.samples,)
        assert ((taught.soft > 0) & (taught.soft < 1)).all()
    assert teachers._held[path.parent] is held
    assert len(held.route.shard.table) == rows
    assert torch.equal(held.replica.flat, flat)
    again = teachers.taught(Lease(0, 0, 0, batches[0], 0, (str(path),)))
    np.testing.assert_array_equal(again.batch.soft, first.batch.soft)
    unseen = dataclasses.replace(batches[0], ids=batches[0].ids + 7)
    told = teachers.taught(Lease(0, 0, 0, unseen, 0, (str(path),))).batch.soft
    other = Teachers(lambda: (make_shard(group(log, 1)), make_replica(group(log, 1))))
    np.testing.assert_array_equal(told, other.taught(Lease(0, 0, 0, unseen, 0, (str(path),))).batch.soft)
    assert teachers.taught(Lease(0, 0, 0, batches[0])).batch is batches[0]


def test_exchanges_come_when_they_are_due(log, tmp_path):
    """Two groups in turn, day after day, so that each has newer copies to turn to."""
    for number in (1, 0):
        train(group(log, number, codistill__burn_in=500, codistill__every=400), log, tmp_path / f"group-{number}")
    read = [line["samples_read"] for line in lessons(tmp_path / "group-0")]
    assert len(read) == 1  # the other one has ended: no newer copy ever comes
    assert 500 <= read[0] < 532


def test_a_stop_and_a_resume_change_nothing(log, peers, tmp_path, monkeypatch):
    train(group(log, 0, checkpoint={"every": 200}), log, beside(peers, tmp_path / "whole"))
    cut = beside(peers, tmp_path / "cut")
    interrupt_at(monkeypatch, 1700)
    with pytest.raises(KeyboardInterrupt):
        train(group(log, 0, checkpoint={"every": 200}), log, cut)
    assert len(lessons(cut)) == 1
    with open(cut / "lessons.jsonl", "a") as file:  # as if it had learned on, after the snapshot, and been killed
        file.write(json.dumps({"samples_read": 1900, "teachers": []}) + "\n")
    train(group(log, 0, checkpoint={"every": 200}), log, cut, resume=True)
    assert lessons(cut) == lessons(tmp_path / "whole" / "group-0")
    assert_same_state(tmp_path / "whole" / "group-0", cut)
    with pytest.raises(RunDirError, match=r"codistill.group was 0 and is now 1"):
        train(group(log, 1), log, cut, resume=True)


def test_in_virtual_time_it_is_the_same(log, peers, tmp_path):
    for name, workers in (("one", 1), ("four", 4)):
        simulate(group(log, 0), cluster(workers), log, beside(peers, tmp_path / name))
    train(group(log, 0), log, beside(peers, tmp_path / "threads"))
    for name in ("one", "four"):
        assert_same_state(tmp_path / name / "group-0", tmp_path / "threads" / "group-0")


def test_one_command_for_all_groups_and_one_that_fails_stops_nobody(log, tmp_path):
    values = yaml.safe_load(job(log, codistill={"groups": 2, "every": 500, "burn_in": 1000}).to_yaml())
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "paceline", "train", str(path), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the model to serve: {tmp_path / 'run' / 'group-0'}" in done.stdout
    assert "group 1: day 2: AUC" in done.stdout
    # Which group is ahead is chance; who is behind has somebody to learn from.
    assert any(lessons(tmp_path / "run" / f"group-{g}") for g in (0, 1))
    told = []
    (tmp_path / "half" / "group-0").mkdir(parents=True)
    (tmp_path / "half" / "group-0" / "config.yaml").write_text("no: {configuration")
    model = train_groups(path, [], 2, tmp_path / "half", True, told.append)
    assert model == tmp_path / "half" / "group-1"
    assert any("group 0 ended with exit code" in line for line in told)
    (tmp_path / "half" / "group-1" / "config.yaml").write_text("no: {configuration")
    with pytest.raises(TrainingError, match="no group came to its end"):
        train_groups(path, [], 2, tmp_path / "half", True, told.append)
    with pytest.raises(RunDirError, match="there is a run already"):
        train_groups(path, [], 2, tmp_path / "run", False, told.append)


def test_churn_is_the_mean_difference_of_predictions(log, tmp_path):
    import pyarrow.parquet as pq

    from paceline.evaluate import predict_run

    for name, seed in (("a", 1), ("b", 2)):
        train(job(log, seed=seed), log, tmp_path / name)
        predict_run(tmp_path / name, [str(log / "day_2.tsv.gz")], tmp_path / f"{name}.parquet")
    a, b = (pq.read_table(tmp_path / f"{name}.parquet")["score"].to_numpy() for name in ("a", "b"))
    expected = float(np.abs(a.astype(np.float64) - b).mean())
    same, other = churn([tmp_path / "a", tmp_path / "a", tmp_path / "b"])
    assert (same.churn, same.rows) == (0.0, 2000)
    assert other.churn == pytest.approx(expected, rel=1e-5)
    assert expected > 0.001
    assert churn([tmp_path / "a", tmp_path / "b"], [str(log / "day_1.tsv.gz")])[0].churn != other.churn
    command = [sys.executable, "-m", "paceline", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run([*command, "--churn"], capture_output=True, text=True)
    assert f"{other.churn:.5f} on 2,000 rows" in done.stdout
    done = subprocess.run([*command, "--data", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--data is for --churn" in done.stderr
    with pytest.raises(ConfigError, match="two run directories"):
        churn([tmp_path / "a"])


def test_a_group_has_to_be_where_the_others_look_for_it(log, tmp_path):
    with pytest.raises(RunDirError, match=r"this one's has to be group-1.*--run-dir DIR/group-1"):
        train(group(log, 1), log, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"codistill.group: which group"):
        train(job(log, codistill={"groups": 2}), log, tmp_path / "group-0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 1}, "codistill.groups"),
        ({"group": 2}, "group 2 is none of the 2 groups"),
        ({"every": 0}, "codistill.every"),
        ({"weight": -1}, "codistill.weight"),
        ({"burnin": 5}, "codistill.burnin"),
    ],
)
def test_what_it_cannot_be(log, options, message):
    with pytest.raises(ConfigError, match=message):
        job(log, codistill=options)
