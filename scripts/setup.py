"""Make a virtual environment with paceline, in place, and everything its tests need.

    python3 scripts/setup.py [FOLDER]

Needs Python 3.11 or later and a package index that pip reaches. `constraints.txt` picks a CPU build of torch.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (this script is run by whatever python3 is)
        sys.exit(f"paceline needs Python 3.11 or later; this is {sys.version.split()[0]} (set PYTHON=python3.11)")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    ready = folder / ".ready"
    ready.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    # torch first: with the pinned build there, nothing else pulls another one.
    subprocess.run([*pip, "install", "--quiet", "torch", *constraints], check=True)
    subprocess.run([*pip, "install", "--quiet", *constraints, "-e", f"{ROOT}[dev]"], check=True)
    ready.touch()


if __name__ == "__main__":
    main()
