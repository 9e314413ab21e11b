"""Run the examples and record what they reach in examples/recorded.json (tests compare with it).

    python scripts/record_examples.py

Needs the real data (PACELINE_DATA, default ../shared/data).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from paceline import load_config, train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KEYS = ("auc", "logloss", "gauc", "ne", "calibration", "samples_read", "samples_applied", "updates", "ids")


def main() -> None:
    data = Path(os.environ.get("PACELINE_DATA", EXAMPLES.parents[1] / "shared" / "data"))
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("criteo", "movielens", "kuairand"):
            overrides = [f"data.days={data}/criteo/day_*.tsv.gz"]
            if name != "criteo":
                out = Path(folder) / f"{name}-log"
                subprocess.run([sys.executable, str(EXAMPLES / name / "prepare.py"), "--out", str(out)], check=True)
                overrides = [f"data.days={out}/day_*.parquet"]
            config = load_config(EXAMPLES / name / "job.yaml", overrides)
            end = train(config, EXAMPLES / name, Path(folder) / name)
            recorded[name] = {key: end[key] for key in KEYS}
            print(name, recorded[name])
    (EXAMPLES / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
