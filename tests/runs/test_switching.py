"""What a person asked for while a run goes on, and recoveries that go back to before it."""

import fcntl
import threading

import pytest
import yaml
from tools import job, synthetic

from paceline import pace as p
from paceline.errors import RunDirError
from paceline.requests import ask, waiting
from paceline.rundir import RunDir
from paceline.runtimes.coordinator import Coordinator
from paceline.switching import Switching


class Settler:
    def apply(self, command):
        return None

    def drop(self, number):
        pass


@pytest.fixture
def config(tmp_path):
    return job(synthetic(tmp_path), switch=[{"at": 5000, "pace": "async"}])


def begun(config, run, state=None):
    switching = Switching(config, run, lambda text: None)
    machine = p.begin(switching.begin(0, 0, state))
    return switching, Coordinator(machine, Settler(), lambda line: None)


def request(run, name, **options):
    (run / "requests").mkdir(parents=True, exist_ok=True)
    path = run / "requests" / "1.yaml"
    path.write_text(yaml.safe_dump({"name": name, **options}))
    return path


def test_it_outlasts_a_recovery_to_a_snapshot_of_before(config, tmp_path):
    run = tmp_path / "run"
    switching, coordinator = begun(config, run)
    before = switching.to_json()
    assert coordinator.machine.pace.name == "sync"
    request(run, "gba", max_staleness=7)
    switching.follow_requests(coordinator, virtual=False)
    assert coordinator.machine.pace == p.gba(config.gradients, max_staleness=7)

    for state in (before, None):  # a snapshot of before it was asked, and none at all
        again, coordinator = begun(config, run, state)
        assert coordinator.machine.pace == p.gba(config.gradients, max_staleness=7)
        assert again.to_json()["asked"] == {"name": "gba", "max_staleness": 7}

    planned = Switching(config, run, lambda text: None)
    assert planned.begin(0, 5000, before).name == "async", "it held until the plan's next switch"
    other = config.model_copy(update={"switch": []})
    assert Switching(other, run, lambda text: None).begin(0, 0, None).name == "sync", "the plan is another now"


def test_one_that_was_taken_up_cannot_be_withdrawn(config, tmp_path):
    """Who asked is not told that nothing was changed, once something was."""
    run = tmp_path / "run"
    switching, coordinator = begun(config, run)
    path = request(run, "gba")
    switching.follow_requests(coordinator, virtual=False)
    assert coordinator.machine.pace.name == "gba"
    assert not path.exists()
    assert not waiting(run, "yaml")


def test_who_asks_learns_that_it_was_taken_up_even_without_an_answer(config, tmp_path):
    run = tmp_path / "run"
    switching, coordinator = begun(config, run)
    (run / "requests").mkdir(parents=True)
    watched = (run / ".watched").open("a+")
    fcntl.flock(watched, fcntl.LOCK_EX)
    taken = threading.Event()

    def follow():
        while not waiting(run, "yaml"):
            taken.wait(0.01)
        switching.follow_requests(coordinator, virtual=False)  # and nobody works, so no answer comes

    thread = threading.Thread(target=follow)
    thread.start()
    with pytest.raises(RunDirError, match="it took the request up, and ended or gave no answer"):
        ask(run, "yaml", yaml.safe_dump({"name": "gba"}), 2.0, "")
    thread.join()
    watched.close()
    assert coordinator.machine.pace.name == "gba"


def test_a_file_that_is_no_request_changes_nothing(config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "pace.asked").write_text("{broken")
    assert Switching(config, run, lambda text: None).begin(0, 0, None).name == "sync"


def test_a_request_that_cannot_be_taken_away_changes_nothing(config, tmp_path, monkeypatch):
    """The folder of requests belongs to who asked first."""
    run, said = tmp_path / "run", []
    switching, coordinator = begun(config, run)
    switching._note = said.append
    path = request(run, "gba")

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "unlink", refuse)
    for _ in range(3):
        switching.follow_requests(coordinator, virtual=False)
    assert coordinator.machine.pace.name == "sync"
    assert len(said) == 1
    assert "cannot be removed (Permission denied); nothing is changed" in said[0]


def test_a_run_that_was_forgotten_leaves_no_choice_behind(config, tmp_path):
    run = tmp_path / "run"
    switching, coordinator = begun(config, run)
    request(run, "gba")
    switching.follow_requests(coordinator, virtual=False)
    RunDir(run).forget()
    assert Switching(config, run, lambda text: None).begin(0, 0, None).name == "sync"
