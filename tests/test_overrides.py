"""What a person may type: names for sections, overrides in any order, weights that change one thing only."""

import pytest

from paceline.clusterfile import load_cluster
from paceline.errors import ConfigError
from paceline.jobfile import load_config

JOB = "data: {format: criteo, days: [x]}\npace: sync\n"


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def test_the_order_of_overrides_does_not_matter(job):
    overrides = ["pace.weight.k=3", "pace=async", "pace.weight=power"]
    found = [load_config(job, order) for order in (overrides, overrides[::-1], sorted(overrides))]
    assert found[0] == found[1] == found[2]
    assert found[0].pace.weight.k == 3
    swapped = [load_config(job, ["optimizer.sparse.period=1000", "optimizer.sparse.name=adagrad_swap"])]
    swapped.append(load_config(job, ["optimizer.sparse.period=1000", "optimizer.sparse=adagrad_swap"]))
    assert swapped[0] == swapped[1]
    assert swapped[0].optimizer.sparse.options == {"period": 1000}


def test_the_weight_of_damped_keeps_what_is_not_given(job):
    plain, changed = (load_config(job, ["pace=damped", *more]) for more in ([], ["pace.weight.k=2"]))
    assert plain.pace.build(4).weight.k == 4
    assert plain.pace.weight.rows == changed.pace.weight.rows == "row"
    assert changed.pace.weight.scales == "step"
    assert changed.pace.build(4).weight.k == 2
    again = load_config(job, ["pace={name: damped, weight: {law: log, k: 3, rows: gradient, scales: gradient}}"])
    assert again.pace.build(4).weight.scales == "gradient"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.globl=3"], "command line: batch.globl: unknown key"),
        (["batch=3"], r"command line: batch: 3 is not allowed: write keys under it \(global, local\)"),
        (["pace.weight=cube", "pace=async"], "pace.weight.law: 'cube' is not allowed"),
        (["pace={name: async, weight: {law: power, k: 0.1}}"], "pace.weight.k: 0.1 is not allowed"),
        (["pace.weight=power"], "the pace 'sync' has no option 'weight'"),
    ],
)
def test_wrong_overrides_are_told_as_such(job, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(job, overrides)


def test_wrong_clusters_are_told_in_the_words_of_the_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    for text, message in (
        ("", "this file is empty"),
        ("workers: true\n", "line 1: workers: True is not allowed"),
        ("workers: 4\ncompute: null\n", "line 2: compute: None is not allowed: write keys under it .*or leave it out"),
        ("workers: 4\nstragglers: {share: 2}\n", "line 2: stragglers.share: 2 is not allowed"),
        ("workers: 4\nstragglers: {trace: a.csv, share: 0.1}\n", "trace replaces every other key"),
        ("compute: {fixed_ms: 3}\n", "workers: this key is needed"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_cluster(path)
