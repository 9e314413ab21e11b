"""Whenever a writer is killed, the last good snapshot loads, and nothing is leaked once it is cleaned up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shards import Shards

HERE = Path(__file__).parent


@pytest.mark.parametrize(("shards", "same"), [(1, False), (1, True), (3, False)])
def test_killed_at_every_step(tmp_path, shards, same):
    made = Shards(shards).train(1, 5)
    made.save(tmp_path / "start", keep=2, cursor="old")
    made.train(6, 6, share=0.02).save(tmp_path / "start", keep=2, cursor="old")
    words = [sys.executable, str(HERE / "killed_writer.py"), str(tmp_path / "start"), str(shards), str(int(same))]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert out.returncode == 0, out.stderr
    steps = [json.loads(line) for line in out.stdout.splitlines()]
    *killed, last = steps
    assert {step["code"] for step in killed} == {-signal.SIGKILL}
    assert last["code"] == 0
    for step in steps:
        assert step["same"], step
        assert not step["leaked"] + step["missing"], step
    # Old until it is renamed, new from then on; both happen, and so do files that nobody ever named.
    after = [step["cursor"] for step in steps]
    assert after == sorted(after, reverse=True)
    assert {"old", "new"} == set(after)
    assert [step["version"] for step in steps] == [6 if same or cursor == "old" else 7 for cursor in after]
    assert any(step["garbage"] > 0 for step in killed)
    assert len(killed) >= 10
