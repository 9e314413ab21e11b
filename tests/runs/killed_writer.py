"""Kill a process at every step that it takes in the file system while it writes a snapshot; see `test_snapshot_kill`.

    python killed_writer.py FOLDER SHARDS SAME

For step 1, 2, ... a child of this process goes on from the snapshots in a copy of FOLDER and is killed (SIGKILL) right
before that step of take, write and commit; then the copy is looked at. Prints one line of JSON for each, until a child
comes to its end. SAME: 1 if the version is the newest one that is there already.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from shards import Shards, named, pieces_in

from paceline import checkpoint

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
FIRST = 6  # version of the newest snapshot in FOLDER


def child(folder, shards, same, fatal):
    """Never returns."""
    made = Shards(shards).load(folder)
    if not same:
        made.train(FIRST + 1, FIRST + 1, share=0.02)
    steps = [0]

    def killed(event, arguments):
        if event in STEPS and str(folder) in os.fsdecode(str(arguments[0])):
            steps[0] += 1
            if steps[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(killed)
    made.save(folder, keep=1, cursor="new")
    os._exit(0)


def main():
    source, shards, same = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    fatal, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        fatal += 1
        folder = source.with_name(f"step-{fatal}")
        shutil.copytree(source, folder)
        pid = os.fork()
        if pid == 0:
            child(folder, shards, same, fatal)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = len(pieces_in(folder))
        checkpoint.clean(folder)
        found = checkpoint.newest(folder)
        wanted = Shards(1).train(1, FIRST - 1)
        wanted.train(FIRST, FIRST, share=0.02)
        if found.version > FIRST:
            wanted.train(FIRST + 1, FIRST + 1, share=0.02)
        mine, theirs = Shards(shards).load(folder).state(), wanted.state()
        told = {
            "code": code,
            "version": found.version,
            "cursor": found.state.get("cursor"),
            "same": mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine),
            "leaked": sorted(pieces_in(folder) - named(folder)) + sorted(p.name for p in folder.glob(".*")),
            "missing": sorted(named(folder) - pieces_in(folder)),
            "garbage": left - len(pieces_in(folder)),
        }
        print(json.dumps(told), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
