"""A job.yaml to start from, written beside a synthetic log."""

from __future__ import annotations

from pathlib import Path

import yaml

from paceline.data.synth import SynthSpec

_BODY = """\
model: {name: deepfm, dim: 16, hidden: [256, 128]}
optimizer:
  sparse: {name: adagrad, lr: 0.02}
  dense: {name: adam, lr: 0.001}
batch: {global: 1024, local: 256}
pace: {name: sync}     # sync | async | bounded_staleness | backup_workers | bulk_synchronous | gba | damped
workers: 2
"""


def write_job(spec: SynthSpec, folder: Path) -> Path:
    """Write folder/job.yaml, which trains on the log of `spec` in the same folder. Returns its path."""
    ending = (
        "parquet" if spec.layout == "parquet" else {"gz": "tsv.gz", "zst": "tsv.zst", "none": "tsv"}[spec.compression]
    )
    job: dict[str, object] = {"data": {"format": spec.layout, "days": f"day_*.{ending}"}}
    if spec.layout == "parquet":
        job["features"] = {
            "label": {"column": "click"},
            "numeric": [f"i{n}" for n in range(1, spec.numeric + 1)],
            "categorical": [f"c{n}" for n in range(1, spec.categorical + 1)],
            "multi": [{"column": f"m{n}"} for n in range(1, spec.multi + 1)],
            "group": "user",
        }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False, default_flow_style=None, width=110) + _BODY)
    return path
