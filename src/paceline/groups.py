"""All groups of a codistillation from one command: a process for each, which lives and dies alone.

Which model is served is fixed beforehand: that of the first group that came to its end, in the order of their numbers.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from paceline.errors import Interrupted, RunDirError, TrainingError
from paceline.lessons import group_folder


def train_groups(
    job: Path, overrides: Sequence[str], groups: int, run: Path, resume: bool, note: Callable[[str], None]
) -> Path:
    """Run `paceline train` for every group under the directory `run`; returns the run directory of the model to serve.

    A group that fails does not stop the others. Raises TrainingError if none comes to its end, Interrupted after a
    keyboard interrupt, which is passed on to every group.
    """
    if not resume and any(group_folder(run, group).exists() for group in range(groups)):
        raise RunDirError(f"{run}: there is a run already; go on with --resume, or choose another --run-dir")
    processes = {}
    for group in range(groups):
        folder = group_folder(run, group)
        command = [sys.executable, "-m", "paceline", "train", str(job), *overrides, f"codistill.group={group}"]
        command += ["--run-dir", str(folder)]
        command += ["--resume"] if resume and folder.exists() else []
        # In process groups of their own: an interrupt of the terminal reaches them once, from here, and not again while
        # they keep what they have.
        processes[group] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )

    def pass_on(group: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.strip():
                    note(f"group {group}: {line.rstrip()}")

    threads = [threading.Thread(target=pass_on, args=item, daemon=True) for item in processes.items()]
    for thread in threads:
        thread.start()
    interrupted = False
    for group, process in processes.items():
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                if not interrupted:
                    for other in processes.values():
                        other.send_signal(signal.SIGINT)
                interrupted = True
        if process.returncode and not interrupted:
            note(f"group {group} ended with exit code {process.returncode}; the others go on")
    for thread in threads:
        thread.join()
    if interrupted:
        raise Interrupted(f"interrupted; every group kept what it had: go on with --resume --run-dir {run}")
    found = [group_folder(run, group) for group, process in processes.items() if not process.returncode]
    if not found:
        raise TrainingError(f"{run}: no group came to its end; see above, then go on with --resume --run-dir {run}")
    return found[0]
