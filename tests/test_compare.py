"""`paceline compare`: hand-written runs with numbers worked out by hand, and one real one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tools import job, synthetic, train

from paceline.errors import ConfigError, RunDirError
from paceline.report.compare import compare_runs, print_comparison, short_names
from paceline.report.plot import draw, figure

PNG = b"\x89PNG\r\n\x1a\n"
LONG = "a_rather_long_name_that_someone_chose_for_an_experiment_in_june"


def line(event, day, auc, samples, seconds, pace="sync", **more):
    account = {"samples_read": samples, "samples_applied": samples - 20, "samples_dropped": 20}
    return {"event": event, "day": day, "auc": auc, **account, "pace": pace, "seconds": seconds, **more}


def write(folder, lines, pace=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if pace:
        (folder / "pace.trace").write_text(f'= {{"pace": {{"name": "{pace}"}}}}\n> joined worker-0\n')
    return folder


def run(folder, aucs, second=10.0, paces=None, end=True, virtual=None, **more):
    """A run with evaluations of days 1, 2, ...; each day has 1000 samples and takes `second` seconds."""
    paces = paces or ["sync"] * (len(aucs) + 1)
    lines = []
    for day, auc in enumerate(aucs, 1):
        lines.append(line("evaluation", day, auc, 1000 * day, second * day, paces[day - 1], **more))
    if end:
        days = len(aucs) + 1
        lines.append(line("end", days - 1, aucs[-1], 1000 * days, second * days, paces[-1], **more))
    if virtual is not None:
        lines = [x | {"virtual_seconds": virtual * x["samples_read"] / 1000} for x in lines]
    return write(folder, lines)


@pytest.fixture
def two(tmp_path):
    """sync: 100 samples/s; gba: 200 samples/s, its last AUC lower by 0.0003."""
    return [run(tmp_path / "sync", [0.70, 0.72, 0.74]), run(tmp_path / "gba", [0.70, 0.73, 0.7397], 5.0, ["gba"] * 4)]


def shown(comparison, width=160):
    out = io.StringIO()
    print_comparison(Console(width=width, file=out), comparison)
    return out.getvalue()


def row(text, name):
    """The cells of the first line that begins so, in one string."""
    return next(" ".join(x.split()) for x in text.splitlines() if x.strip().startswith(name))


def test_a_row_per_run_with_numbers_worked_out_by_hand(two):
    text = shown(compare_runs(two))
    assert text.startswith("AUC of day 3; mean over days 1–3")
    assert row(text, "run ") == "run pace AUC difference mean AUC samples wall s samples/s ratio dropped"
    assert row(text, "sync ") == "sync sync 0.74000 baseline 0.72000 4,000 40.0 100 1.00× 0.50%"
    assert row(text, "gba ") == "gba gba 0.73970 -0.00030 0.72323 4,000 20.0 200 2.00× 0.50%"
    days = text[text.index("AUC by day") :]
    assert [row(days, f"{day} ") for day in (1, 2, 3)] == [
        "1 0.70000 0.70000",
        "2 0.72000 0.73000",
        "3 0.74000 0.73970",
    ]


def test_the_order_of_the_words_is_the_order_of_the_runs(two):
    found = compare_runs(two[::-1]).to_json()
    assert found["baseline"] == "gba"
    assert [r["name"] for r in found["runs"]] == ["gba", "sync"]
    assert found["runs"][1]["auc_difference"] == pytest.approx(0.0003)
    assert found["runs"][1]["rate_ratio"] == pytest.approx(0.5)


def test_json_is_one_object_with_everything(two):
    found = json.loads(json.dumps(compare_runs(two).to_json(), allow_nan=False))
    assert (found["baseline"], found["days"], found["notes"]) == ("sync", [1, 2, 3], [])
    gba = found["runs"][1]
    wanted = {"name": "gba", "path": str(two[1]), "paces": ["gba"], "finished": True, "clock": "wall", "seconds": 20.0}
    wanted |= {"auc": 0.7397, "auc_day": 3, "samples_read": 4000, "samples_per_s": 200.0, "rate_ratio": 2.0}
    wanted |= {"staleness_mean": None, "staleness_max": None, "idle_share": None, "dropped_share": 0.005}
    assert {key: gba[key] for key in wanted} == wanted
    assert gba["auc_mean"] == pytest.approx(0.7232333, abs=1e-6)
    assert gba["evaluations"][1] == {
        "day": 2, "auc": 0.73, "samples_read": 2000, "seconds": 10.0, "switched": False,
    }  # fmt: skip


def test_keys_of_a_cluster_are_shown_where_any_run_has_them(tmp_path):
    new = {"staleness_mean": 1.25, "staleness_max": 7, "idle_share": 0.125, "dropped_share": 0.0125}
    runs = [run(tmp_path / "a", [0.7, 0.8], **new), run(tmp_path / "b", [0.7, 0.8], **dict.fromkeys(new))]
    text = shown(compare_runs(runs))
    assert row(text, "a ").endswith(" 1.25 7 12.5% 1.25%")
    assert row(text, "b ").endswith(" – – – 0.67%")  # from the account: 20 of 3,000 samples dropped


def test_one_evaluation_needs_no_second_table(tmp_path):
    text = shown(compare_runs([run(tmp_path / "a", [0.7]), run(tmp_path / "b", [0.71])]))
    assert text.splitlines()[0].strip() == "AUC of day 1"
    assert "mean AUC" not in text
    assert "AUC by day" not in text


def test_a_difference_of_nothing_has_no_minus(tmp_path):
    runs = [run(tmp_path / "a", [0.7]), run(tmp_path / "b", [0.7 - 1e-9])]
    assert "+0.00000" in shown(compare_runs(runs))


# --- paces ------------------------------------------------------------------------------------------------------------


def test_a_switch_is_named_and_marked_where_it_happened(tmp_path):
    a = run(tmp_path / "a", [0.7, 0.71, 0.72], paces=["sync", "gba", "gba", "async"])
    comparison = compare_runs([a, run(tmp_path / "b", [0.7, 0.71, 0.72])])
    assert comparison.runs[0].paces == ("sync", "gba", "async")
    assert [e.switched for e in comparison.runs[0].evaluations] == [True, False, True]
    assert "sync → gba → async" in shown(comparison)


def test_a_switch_before_the_first_evaluation_is_known_from_the_trace(tmp_path):
    a = write(tmp_path / "a", [line("evaluation", 1, 0.7, 1000, 1.0, "gba")], pace="sync")
    b = write(tmp_path / "b", [line("evaluation", 1, 0.7, 1000, 1.0, "gba")])
    (b / "pace.trace").write_text("no trace at all\n")
    assert [r.paces for r in compare_runs([a, b]).runs] == [("sync", "gba"), ("gba",)]


# --- days that differ -------------------------------------------------------------------------------------------------


def test_runs_are_compared_on_the_days_in_common(tmp_path):
    a = run(tmp_path / "a", [0.70, 0.72, 0.90])
    b = run(tmp_path / "b", [0.71, 0.75], end=False)
    comparison = compare_runs([a, b])
    found = comparison.to_json()["runs"][1]
    assert (found["auc_day"], found["finished"], found["samples_read"]) == (2, False, 2000)
    assert found["auc_difference"] == pytest.approx(0.03)
    assert comparison.mean(comparison.runs[0]) == pytest.approx(0.71)
    text = shown(comparison)
    assert text.startswith("AUC of day 2; mean over days 1–2")
    assert "Compared on days 1–2; day 3 left out" in text
    assert "Unfinished: b;" in text
    assert row(text[text.index("AUC by day") :], "3 ") == "3 0.90000 –"


def test_no_day_in_common_is_said_and_nothing_is_compared(tmp_path):
    a = write(tmp_path / "a", [line("evaluation", 1, 0.70, 1000, 1.0)])
    b = write(tmp_path / "b", [line("evaluation", 2, 0.75, 2000, 1.0)])
    comparison = compare_runs([a, b])
    found = comparison.to_json()["runs"][1]
    assert (found["auc"], found["auc_day"], found["auc_difference"], found["auc_mean"]) == (0.75, 2, None, None)
    assert "No day was evaluated by all runs" in shown(comparison)
    draw(comparison, tmp_path / "x.png")


# --- two clocks -------------------------------------------------------------------------------------------------------


def test_virtual_time_where_every_run_has_it(tmp_path):
    comparison = compare_runs([run(tmp_path / "a", [0.7], virtual=4.0), run(tmp_path / "b", [0.7], virtual=1.0)])
    text = shown(comparison)
    assert "virtual s" in text
    assert "(wall)" not in text
    assert " 2,000 2.0 1,000 4.00× " in row(text, "b ")
    assert [axes.get_title(loc="left") for axes in figure(comparison).axes[:2]] == [
        "AUC over samples",
        "AUC over time in the simulated cluster",
    ]


def test_virtual_and_wall_clock_time_share_neither_axis_nor_ratio(tmp_path):
    runs = [run(tmp_path / "v", [0.7, 0.8], virtual=4.0), run(tmp_path / "w", [0.7, 0.81])]
    runs.append(run(tmp_path / "v2", [0.7, 0.82], virtual=2.0))
    text = shown(compare_runs(runs))
    assert "30.0 (wall)" in text
    assert "cannot be compared" in " ".join(text.split())
    assert [r["rate_ratio"] for r in compare_runs(runs).to_json()["runs"]] == [1.0, None, 2.0]
    over_samples, virtual, wall = figure(compare_runs(runs)).axes[:3]
    curves = [[x for x in axes.get_lines() if x.get_linestyle() == "-"] for axes in (over_samples, virtual, wall)]
    assert [len(found) for found in curves] == [3, 2, 1]
    assert list(curves[1][0].get_xdata()) == [4.0, 8.0]
    assert list(curves[2][0].get_xdata()) == [10.0, 20.0]
    assert "wall-clock" in wall.get_xlabel()


def test_a_run_with_virtual_time_in_only_some_lines_is_on_wall_clock_time(tmp_path):
    a = run(tmp_path / "a", [0.7, 0.8], virtual=4.0)
    lines = [json.loads(x) for x in (a / "metrics.jsonl").read_text().splitlines()]
    lines[0]["virtual_seconds"] = None
    write(a, lines)
    assert [r.clock for r in compare_runs([a, run(tmp_path / "b", [0.7], virtual=1.0)]).runs] == ["wall", "virtual"]


# --- names and widths -------------------------------------------------------------------------------------------------


def test_names_are_the_shortest_tails_that_differ():
    paths = [Path(p) for p in ("x/a/run-0", "x/b/run-0", "x/b/run-1", "../x/deep/sync")]
    assert short_names(paths) == ["a/run-0", "b/run-0", "run-1", "sync"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_narrow_terminal_loses_columns_but_no_run_and_no_auc(tmp_path, width):
    more = {"staleness_mean": 1.0, "staleness_max": 3, "idle_share": 0.1}
    names = ["sync", "gba", LONG, "async", "bounded", "backup", "bulk", "sync_to_gba"]
    runs = [run(tmp_path / n, [0.7 + i / 100, 0.75 + i / 100], **more) for i, n in enumerate(names)]
    lines = shown(compare_runs(runs), width).splitlines()
    assert max(map(len, lines)) <= width
    first = lines[: next(i for i, x in enumerate(lines) if x.startswith("#1") or "AUC by day" in x)]
    assert sum("0.7" in x or "0.8" in x for x in first) == len(names)
    assert all(any(x.strip().startswith(name[:6]) for x in first) for name in names)
    assert not any("…" in x for x in lines)
    by_day = [x for x in lines if x.split()[:1] in (["1"], ["2"])]
    assert sum(len(x.split()) - 1 for x in by_day) == 2 * len(names)


@pytest.mark.parametrize("name", ["$x_{1}$", "[bold]run[/bold]", "_hidden", "日本", b"caf\xe9", LONG * 3])
def test_any_name_can_be_shown_and_drawn(tmp_path, name):
    a = run(tmp_path / os.fsdecode(name), [0.7, 0.8])
    comparison = compare_runs([a, run(tmp_path / "b", [0.7, 0.8])])
    shown(comparison).encode()
    label = figure(comparison).axes[-1].get_legend().get_texts()[0].get_text()
    assert comparison.runs[0].name[:20] in label
    draw(comparison, tmp_path / "x.png")


# --- the plot ---------------------------------------------------------------------------------------------------------


def size(path):
    """(width, height) in pixels of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head.startswith(PNG)
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_a_plot_has_the_size_that_suits_its_panels(tmp_path, two):
    draw(compare_runs(two), tmp_path / "x.png")
    assert size(tmp_path / "x.png") == (1950, 1020)
    three = [*two, run(tmp_path / "v", [0.7, 0.72], virtual=1.0)]
    draw(compare_runs(three), tmp_path / "x.PNG")
    assert size(tmp_path / "x.PNG") == (2700, 1020)
    many = [run(tmp_path / f"{LONG}-{i}", [0.7, 0.72]) for i in range(9)]
    draw(compare_runs(many), tmp_path / "many.png")
    width, height = size(tmp_path / "many.png")
    assert (width, height > 1020) == (1950, True)


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", PNG)])
def test_the_suffix_says_what_is_written(tmp_path, two, suffix, begins):
    draw(compare_runs(two), tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes().startswith(begins)


def test_curves_are_in_the_plot_and_limits_show_differences(two):
    axes = figure(compare_runs(two)).axes
    samples = [x for x in axes[0].get_lines() if x.get_linestyle() == "-"]
    assert [list(x.get_ydata()) for x in samples] == [[0.70, 0.72, 0.74], [0.70, 0.73, 0.7397]]
    low, high = axes[0].get_ylim()
    assert 0.69 < low < 0.70
    assert 0.74 < high < 0.75
    below = next(a for a in axes if a.get_title(loc="left").startswith("AUC minus"))
    assert list(below.get_lines()[1].get_ydata()) == pytest.approx([0.0, 0.01, -0.0003])


# --- errors and the command -------------------------------------------------------------------------------------------


CASES = ["one", "twice", "link", "gone", "file", "folder", "none", "empty", "odd", "binary", "broken"]


def cases(tmp_path):
    good, gone, file = run(tmp_path / "good", [0.7]), tmp_path / "gone", tmp_path / "file"
    file.write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(good)
    none = write(tmp_path / "none", [line("end", 1, None, 100, 1.0)])
    empty = write(tmp_path / "empty", [])
    odd = write(tmp_path / "odd", [{"event": "evaluation", "auc": 0.7, "day": 1, "seconds": 1.0}])
    binary = write(tmp_path / "binary", [])
    (binary / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    broken = write(tmp_path / "broken", [])
    (broken / "metrics.jsonl").write_text("{half\n")
    return {
        "one": ([good], ["good", "two"]),
        "twice": ([good, good], ["named twice"]),
        "link": ([good, tmp_path / "link"], ["link", "the same directory as"]),
        "gone": ([good, gone], ["gone", "no such directory", "paceline train"]),
        "file": ([good, file], ["file", "not a run directory"]),
        "folder": ([good, tmp_path / "folder"], ["folder", "metrics.jsonl", "paceline train"]),
        "none": ([good, none], ["none", "no evaluation", "evaluate: next_day"]),
        "empty": ([good, empty], ["empty", "no evaluation"]),
        "odd": ([good, odd], ["odd", "samples_read"]),
        "binary": ([good, binary], ["binary", "cannot be read"]),
        "broken": ([good, broken], ["broken", "line 1"]),
    }


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_compared_is_named_with_the_way_out(tmp_path, case):
    paths, words = cases(tmp_path)[case]
    with pytest.raises(RunDirError) as caught:
        compare_runs(paths)
    assert caught.value.exit_code == 2
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("out", ["x.gif", "x", "no/such/folder/x.png", "sync/metrics.jsonl/x.svg", "folder.png"])
def test_a_plot_that_cannot_be_written_is_one_message(tmp_path, two, out):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="--out") as caught:
        draw(compare_runs(two), tmp_path / out)
    assert out in str(caught.value)
    assert caught.value.exit_code == 2


def paceline(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "paceline", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_the_command_on_real_runs(tmp_path):
    log = synthetic(tmp_path / "log", rows=3000, days=3)
    train(job(log), log, tmp_path / "runs" / "sync")
    end = train(job(log, switch=[{"at": "day_1", "pace": {"name": "gba"}}]), log, tmp_path / "runs" / "mixed")
    told = paceline("compare", "runs/sync", "runs/mixed", "--out", "c.png", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "sync → gba" in told.stdout
    assert "plot: c.png" in told.stdout
    assert size(tmp_path / "c.png") == (1950, 1020)
    told = paceline("compare", "runs/sync", "runs/mixed", "--json", cwd=tmp_path)
    mixed = json.loads(told.stdout)["runs"][1]
    assert (mixed["auc"], mixed["samples_read"], mixed["path"]) == (end["auc"], 3000, "runs/mixed")
    assert [e["switched"] for e in mixed["evaluations"]] == [True, False]
    told = paceline("compare", "runs/sync", "runs/gone", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("paceline: runs/gone: there is no such directory")


def test_bytes_sent_stand_beside_those_predicted(tmp_path, two):
    assert "Bytes sent" not in shown(compare_runs(two))
    sent = {"bytes_predicted": {"row_gradients": 4000.0, "ids": 0.0}, "bytes_measured": {"row_gradients": 5000.0}}
    empty = {"bytes_predicted": {}, "bytes_measured": {}}
    runs = [run(tmp_path / "one", [0.7, 0.8], **sent), run(tmp_path / "none", [0.7, 0.8], **empty)]
    text = shown(compare_runs(runs))
    assert text.count("Bytes sent") == 1
    assert "Bytes sent by one, per worker and update" in text
    assert row(text, "row gradients") == "row gradients 4,000 5,000 1.250"
    assert row(text, "all") == "all 4,000 5,000 1.250"
    assert "ids" not in text[text.index("Bytes sent") :].split("AUC by day")[0]


def test_drawing_is_imported_late_and_without_global_state(two):
    code = (
        "import sys; from pathlib import Path; from paceline.report.plot import *\n"
        "from paceline.report.compare import compare_runs\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure(compare_runs([Path(p) for p in sys.argv[1:]]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, two)], check=True)
