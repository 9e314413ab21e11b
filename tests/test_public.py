"""The public face: `__all__`, the documentation, the drawn diagram, the house's rules."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import paceline
from paceline.pace import TRANSITIONS

ROOT = Path(__file__).parents[1]


def test_all_is_what_the_documentation_says():
    page = (ROOT / "docs" / "api.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {re.match(r"\w+", name)[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert documented == set(paceline.__all__)


def test_every_public_name_loads_and_has_a_docstring():
    for name in paceline.__all__:
        assert getattr(paceline, name).__doc__, name


def test_the_diagram_is_drawn_from_the_code():
    spec = importlib.util.spec_from_file_location("draw_pace", ROOT / "scripts" / "draw_pace.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert draw.PAGE.read_text() == draw.drawn_page(draw.PAGE.read_text()), "run scripts/draw_pace.py"


def test_the_tables_transitions_are_the_machines():
    """Every event and command that moves a worker or a gradient is in the table that the diagram is drawn from."""
    named = {why.split(" ")[0] for _, _, why, _ in TRANSITIONS}
    moves = {"BatchRead", "WorkerJoined", "WorkerLeft", "WorkRequested", "GradientPushed", "Grant", "Apply", "Drop"}
    assert named == moves


def test_files_are_small():
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert max(sizes.values()) <= 400, max(sizes, key=sizes.get)


def test_no_kernel_is_parallel():
    """numba's default threading layer aborts the process when parallel kernels run in several Python threads."""
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"njit\([^)]*parallel\s*=\s*True", path.read_text()), path
    from paceline.kernels import hashing, index, optimizers, rows, synth, text

    kernels = [
        f for m in (hashing, index, optimizers, rows, synth, text) for f in vars(m).values() if hasattr(f, "py_func")
    ]
    assert len(kernels) > 20
    assert all(f.targetoptions["nogil"] and not f.targetoptions.get("parallel") for f in kernels)


def test_importing_the_package_is_light():
    """`paceline --help` may not pay for torch or numba."""
    code = "import sys, paceline.cli; print([m for m in ('torch', 'numba', 'pyarrow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_job_md_is_a_valid_job_with_every_key():
    import yaml

    from paceline.config import BatchConfig, CheckpointConfig, DataConfig, FeaturesConfig, JobConfig
    from paceline.jobfile import check

    block = (ROOT / "docs" / "job.md").read_text().split("```yaml")[1].split("```")[0]
    values = yaml.safe_load(block)
    assert set(values) == set(JobConfig.model_fields)
    assert set(values["data"]) == set(DataConfig.model_fields)
    assert set(values["features"]) == set(FeaturesConfig.model_fields)
    assert set(values["checkpoint"]) == set(CheckpointConfig.model_fields)
    assert set(values["batch"]) == {f.alias or n for n, f in BatchConfig.model_fields.items()}
    del values["features"]
    check(values, "docs/job.md")


def test_mrmn_md_has_a_valid_job_with_every_key():
    import yaml

    from paceline.interactionsconfig import HoldoutConfig, InteractionsConfig, RankingConfig
    from paceline.jobfile import check

    values = yaml.safe_load((ROOT / "docs" / "mrmn.md").read_text().split("```yaml")[1].split("```")[0])
    given = values["interactions"]
    assert set(given) == set(InteractionsConfig.model_fields) - {"test"}  # which goes without a holdout
    assert set(given["holdout"]) == set(HoldoutConfig.model_fields)
    assert set(given["ranking"]) == set(RankingConfig.model_fields)
    check(values, "docs/mrmn.md")
