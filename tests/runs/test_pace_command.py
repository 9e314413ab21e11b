"""`paceline pace RUN_DIR NAME`: a run that goes on changes its pace and tells the pause; mistakes take one line."""

import json
import re
import sys
import threading

import pytest
from tools import job, synthetic

from paceline import cli
from paceline.training import train
from paceline.watcher import Silent

DAYS = 1000  # more than will be trained on


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("log"))


class Watching(Silent):
    """Tells when a day begins, and interrupts the run when it is asked to, as Ctrl-C does."""

    def __init__(self):
        self.begun, self.enough, self.notes = threading.Event(), False, []

    def day(self, day, days):
        self.begun.set()

    def tick(self, status):
        if self.enough:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def ask(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of `paceline pace`."""
    monkeypatch.setattr(sys, "argv", ["paceline", "pace", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_running_job_answers_with_the_sample_and_the_pause(tmp_path, log, monkeypatch, capsys):
    run, watching, came = tmp_path / "run", Watching(), []
    data = {"format": "criteo", "days": [str(log / f"day_{day % 3}.tsv.gz") for day in range(DAYS)]}
    config = job(log, data=data, evaluate="none", checkpoint__every=10**9)

    def body():
        try:
            train(config, log, run, watcher=watching)
        except BaseException as error:
            came.append(error)
            watching.begun.set()

    running = threading.Thread(target=body)
    running.start()
    watching.begun.wait()
    try:
        answers = [
            ask(monkeypatch, capsys, run, *words) for words in (("gba", "max_staleness=4"), ("async",), ("sync",))
        ]
        wrong = [ask(monkeypatch, capsys, run, *words) for words in (("fast",), ("gba", "bound=2"), ("gba", "7"))]
    finally:
        watching.enough = True
        running.join()
    assert [type(error) for error in came] == [KeyboardInterrupt], came
    read = 0
    for (code, said, errors), name in zip(answers, ("gba", "async", "sync"), strict=True):
        assert (code, errors) == (0, "")
        told = re.fullmatch(rf"{name} from ([\d,]+) samples on; ([\d,]+\.\d) ms to its first lease\n", said)
        assert told, said
        assert int(told[1].replace(",", "")) >= read
        read = int(told[1].replace(",", ""))
        assert float(told[2].replace(",", "")) >= 0
    trace = (run / "pace.trace").read_text().splitlines()
    switched = [json.loads(line.removeprefix("> switched ")) for line in trace if line.startswith("> switched ")]
    assert [pace["name"] for pace in switched] == ["gba", "async", "sync"]
    assert switched[0]["limit"] == 4
    assert [note.split(": ")[1] for note in watching.notes if "as asked" in note] == [
        f"the pace is now {name}, as asked" for name in ("gba", "async", "sync")
    ]
    for code, said, errors in wrong:
        assert (code, said) == (2, "")
        assert errors.count("\n") == 1, errors
    assert "pace.name: 'fast' is not allowed: input should be 'sync', 'async'" in wrong[0][2]
    assert "pace: the pace 'gba' has no option 'bound' (its options: max_staleness, tokens, weight)" in wrong[1][2]
    assert "'pace.7' is no override; write key=value" in wrong[2][2]
    code, said, errors = ask(monkeypatch, capsys, run, "gba")
    told = "nothing is running there; give pace=... to the next `paceline train`"
    assert (code, said, errors) == (2, "", f"paceline: {run}: {told}\n")


def test_where_no_run_is_nothing_is_asked(tmp_path, monkeypatch, capsys):
    code, said, errors = ask(monkeypatch, capsys, tmp_path, "gba")
    told = "not a run directory (there is no config.yaml)"
    assert (code, said, errors) == (2, "", f"paceline: {tmp_path}: {told}\n")
