"""Make the environments of the peers that `make bench` runs paceline beside, each in a folder of its own.

    python3 scripts/setup_peers.py [FOLDER] [--only NAME ...]

Default folder: .peers. An environment that is there already is left as it is. Every peer has the torch build that
`constraints.txt` pins for paceline, so that what differs is the peer. Needs Python 3.11 or later and a package index.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What pip installs after torch, call by call.
PEERS: dict[str, list[list[str]]] = {
    # torchrec asks for fbgemm-gpu without a version and gets a CUDA build, which does not load beside torch for CPUs.
    "torchrec": [
        ["fbgemm-gpu-cpu==1.8.0", "numpy", "pyre-extensions", "torchmetrics==1.0.3", "tensordict", "iopath", "tqdm"],
        ["--no-deps", "torchrec==1.8.0"],
    ],
    # It imports tensorflow for its callbacks, without asking for it.
    "deepctr_torch": [["deepctr-torch==0.3.0", "requests", "tensorflow-cpu"]],
    "fuxictr": [["fuxictr==2.3.10"]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".peers")
    parser.add_argument("--only", nargs="+", choices=sorted(PEERS), default=sorted(PEERS))
    options = parser.parse_args()
    failed = [name for name in options.only if not make(options.folder / name, PEERS[name])]
    if failed:
        sys.exit(f"no environment for {', '.join(failed)}: pip's message is above; the bench leaves these peers out")


def make(folder: Path, installs: list[list[str]]) -> bool:
    """A virtual environment with torch and what `installs` says. Whether it is there."""
    ready = folder / ".ready"
    if ready.exists():
        return True
    print(f"{folder.name}: installing ...", flush=True)
    venv.create(folder, with_pip=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for packages in (["torch"], *installs):
        if subprocess.run([*pip, *packages, *constraints], check=False).returncode:
            return False
    ready.touch()
    return True


if __name__ == "__main__":
    main()
