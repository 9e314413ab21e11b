"""The main job on data that is always there: a synthetic log with a planted truth, trained for five days.

Writes everything under demo/ and prints the table against the best possible AUC. The pace changes from sync to GBA
after two days, with no hyper-parameter touched.
"""

import shutil
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "demo"
PACELINE = [sys.executable, "-m", "paceline"]

JOB = """\
data: {format: criteo, days: log/day_*.tsv.gz}
model: {name: deepfm, dim: 8, hidden: [128, 64]}
optimizer:
  sparse: {name: adagrad, lr: 0.02}
  dense: {name: adam, lr: 0.001}
batch: {global: 1024, local: 256}
pace: sync
switch: [{at: day_2, pace: {name: gba, max_staleness: 3}}]
workers: 2
"""


def main() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    (DEMO / "job.yaml").write_text(JOB)
    synth = [*PACELINE, "synth", "--rows", "1_500_000", "--days", "5", "--out", "demo/log"]
    train = [*PACELINE, "train", "demo/job.yaml", "--run-dir", "demo/run"]
    for command in (synth, train):
        print("$ paceline", *command[3:], flush=True)
        subprocess.run(command, check=True, cwd=DEMO.parent)
    print("\nThe run is in demo/run: metrics.jsonl, pace.trace, checkpoints/, curves/ (for TensorBoard).")


if __name__ == "__main__":
    main()
