"""Golden traces: what the machine says in a few telling scenes, as text that a reviewer can read.

Record them again with `pytest tests/pace --update-golden` and read the difference.
"""

from pathlib import Path

import pytest
from driver import Driver

from paceline import pace as p

GOLDEN = Path(__file__).parent / "golden"


def run(driver: Driver, script: str) -> None:
    """`r 4` a batch of 4 is read, `a 0` worker 0 asks, `p 0` pushes what it holds, `j 0`, `l 0`, `e` data ends."""
    for word in script.split(";"):
        kind, _, rest = word.strip().partition(" ")
        worker = f"w{rest}"
        match kind:
            case "r":
                driver.send(p.BatchRead(int(rest)))
            case "a":
                driver.send(p.WorkRequested(worker))
            case "p":
                driver.send(p.GradientPushed(worker, driver.computing[worker].gradient))
            case "j":
                driver.send(p.WorkerJoined(worker))
            case "l":
                driver.send(p.WorkerLeft(worker))
            case "e":
                driver.send(p.DataEnded())
            case "snap":
                driver.send(p.SnapshotRequested())
            case "sync":
                driver.send(p.PaceSwitched(p.sync(int(rest))))
            case "gba":
                driver.send(p.PaceSwitched(p.gba(int(rest), 1)))


SCENES = {
    "sync_two_workers_four_batches": (
        p.sync(4),
        "j 0; j 1; " + "r 8; " * 6 + "a 0; a 1; p 1; a 1; p 0; a 0; p 0; p 1; a 1; a 0; e; p 0; p 1",
    ),
    "sync_one_worker_alone": (p.sync(3), "j 0; " + "r 8; " * 3 + "a 0; p 0; a 0; p 0; a 0; p 0; e"),
    "sync_worker_lost": (p.sync(2), "j 0; j 1; r 8; r 8; a 0; a 1; l 1; p 0; a 0; p 0; e"),
    "async_every_push": (p.asynchronous(), "j 0; j 1; r 8; r 8; r 8; a 0; a 1; p 1; a 1; p 1; p 0; e"),
    "bounded_staleness_waits": (
        p.bounded_staleness(1),
        "j 0; j 1; " + "r 8; " * 5 + "a 0; a 1; p 1; a 1; p 1; a 1; p 0; a 0; p 1; p 0; e",
    ),
    "backup_workers_drop_the_last": (
        p.backup_workers(2, 1),
        "j 0; j 1; j 2; " + "r 8; " * 5 + "a 0; a 1; a 2; p 0; p 1; a 0; a 1; p 2; p 1; p 0; e",
    ),
    "gba_cuts_what_is_too_stale": (
        p.gba(2, 1),
        "j 0; j 1; " + "r 8; " * 8 + "a 0; a 1; " + "p 1; a 1; " * 5 + "p 0; p 1; e; a 0; p 0",
    ),
    "switch_sync_gba_sync": (
        p.sync(2),
        "j 0; j 1; "
        + "r 8; " * 8
        + "a 0; a 1; gba 2; p 1; a 1; p 1; a 1; sync 2; p 0; p 1; a 0; a 1; p 0; p 1; a 0; p 0; e",
    ),
    "snapshot_names_what_is_out": (p.gba(3, 1), "j 0; j 1; r 8; r 8; r 8; a 0; a 1; p 0; snap; p 1; a 0; p 0; snap; e"),
}


@pytest.mark.parametrize("name", SCENES)
def test_golden(name, request):
    pace, script = SCENES[name]
    driver = Driver(p.begin(pace))
    run(driver, script)
    text = "\n".join(driver.lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()
    p.replay(path.read_text().splitlines())
