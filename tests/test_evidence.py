"""The evidence scripts run: quick mode of each writes its table and its plot, and what must hold at any size holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(p.stem for p in (ROOT / "evidence").glob("*.py") if p.stem != "harness")
DATA = Path(os.environ.get("PACELINE_DATA", ROOT.parent / "shared" / "data"))
NEEDED = {
    "gba_criteo": ("criteo",),
    "compression": ("criteo",),
    "gp_factorization": ("context",),
    "mrmn": ("retailrocket", "tmall"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("evidence")


@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_mode(script, work):
    for name in NEEDED.get(script, ()):
        if not (DATA / name).exists():
            pytest.skip(f"no {name} in {DATA} (set PACELINE_DATA)")
    done = subprocess.run(
        [sys.executable, str(ROOT / "evidence" / f"{script}.py"), "--quick", "--jobs", "2"],
        env={**os.environ, "PACELINE_EVIDENCE": str(work)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = work / "quick" / script
    table = (out / "table.md").read_text()
    assert f"python evidence/{script}.py --quick" in table
    assert table.count("\n|") > 3
    assert (out / "plot.png").stat().st_size > 10_000
    for path in (out / "runs").glob("*.json"):
        lines = json.loads(path.read_text())["lines"]
        end = lines[-1]
        if end.get("event") == "end" and "diverged" not in end:
            assert end["samples_read"] == end["samples_applied"] + end["samples_dropped"]
            assert end["virtual_seconds"] > 0


COMMITTED = sorted(p.parent.name for p in (ROOT / "evidence" / "results").glob("*/table.md"))


@pytest.mark.parametrize("script", [name for name in COMMITTED if name in SCRIPTS])
def test_committed_results_are_complete(script):
    """What is committed was made by the full mode with at least three seeds."""
    out = ROOT / "evidence" / "results" / script
    assert f"python evidence/{script}.py\n" in (out / "table.md").read_text()
    assert (out / "plot.png").exists()
    seeds = {}
    for path in (out / "runs").glob("*.json"):
        name, seed = path.stem.rsplit("-", 1)
        seeds.setdefault(name, set()).add(seed)
    assert seeds
    assert all(len(found) >= 3 for found in seeds.values()), seeds
