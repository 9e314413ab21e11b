"""Options and fixtures of the whole test suite."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
for _folder in ("pace", "runs", "cluster", "gp"):
    sys.path.insert(0, str(Path(__file__).parent / _folder))


settings.register_profile("paceline", deadline=None)  # a busy machine is no failure
settings.load_profile("paceline")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="record the golden pace traces again")


def real_data(name: str) -> Path:
    """A folder of the real data sets, or a skip that says where it was looked for."""
    root = Path(os.environ.get("PACELINE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not (root / name).is_dir():
        pytest.skip(f"no real data: {root / name} does not exist (set PACELINE_DATA)")
    return root / name


@pytest.fixture
def criteo() -> Path:
    return real_data("criteo")
