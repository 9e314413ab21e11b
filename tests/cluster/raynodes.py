"""Ray nodes on this machine, and jobs that `paceline train` runs on them."""

import subprocess
import sys

import pytest
import yaml


@pytest.fixture(scope="module")
def ray_nodes():
    """Three Ray nodes on this machine; the address of the first."""
    code = (
        "import sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "for _ in range(2):\n"
        "    cluster.add_node(num_cpus=2, include_dashboard=False)\n"
        "print(cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = next(line.strip() for line in process.stdout if ":" in line and " " not in line.strip())
    yield address
    process.communicate("")


def job_file(folder, log, address, **changes):
    values = {
        "data": {"format": "criteo", "days": str(log / "day_*.tsv.gz")},
        "model": {"name": "deepfm", "dim": 4, "hidden": [16, 8]},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.05}, "dense": {"name": "adam", "lr": 0.003}},
        "batch": {"global": 128, "local": 32},
        "pace": "sync",
        "checkpoint": {"every": 4000},
        "cluster": {"address": address, "nodes": 2, "workers": 1},
        **changes,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(job, run, *more):
    command = [sys.executable, "-m", "paceline", "train", str(job), "--run-dir", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
