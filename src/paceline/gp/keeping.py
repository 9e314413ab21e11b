"""What is kept of a factorization: parameters, what the optimizer remembers, and how far it has come, in one
safetensors file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paceline.errors import RunDirError
from paceline.rundir import storing

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """epochs: done; best: the epoch (from 1) with the least validation RMSE, and that RMSE, if there is a validation
    part; lines: of metrics.jsonl; seconds: spent so far.
    """

    epochs: int = 0
    best: int | None = None
    rmse: float | None = None
    lines: int = 0
    seconds: float = 0.0


def keep(run: Path, progress: Progress, parts: dict[str, dict[str, Tensor]]) -> None:
    """Write `parts` (now, best, slots: tensors by name); the old file or the new one is there, never half of it."""
    tensors = {f"{part}/{name}": value.contiguous() for part, held in parts.items() for name, value in held.items()}
    temporary = run / f".{CHECKPOINT}.writing"
    with storing(run / CHECKPOINT):
        save_file(tensors, temporary, {"progress": json.dumps(asdict(progress))})
        temporary.replace(run / CHECKPOINT)


def kept(run: Path) -> tuple[Progress, dict[str, dict[str, Tensor]]] | None:
    """What `keep` wrote, or None. Raises RunDirError if the file is damaged."""
    path = run / CHECKPOINT
    if not path.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})["progress"]))
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                part, name = key.split("/", 1)
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunDirError(f"{path}: damaged ({error}); remove the run directory and train again") from error
    return progress, parts
