"""A small log and facts that are known exactly."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    from tools import synthetic

    return synthetic(tmp_path_factory.mktemp("planning"), rows=9000, days=2)
