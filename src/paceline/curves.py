"""TensorBoard curves of a run. The step is the number of samples read, so runs at different paces line up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.rundir import storing


class Curves:
    """Writes scalars; on a resume, points behind the checkpoint are hidden."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with storing(folder):
            self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_at)

    def add(self, prefix: str, values: dict[str, Any], samples: int) -> None:
        """One point per number in `values`, at `samples`."""
        with storing("curves"):
            for name, value in values.items():
                if isinstance(value, (int, float)) and value == value:
                    self._writer.add_scalar(f"{prefix}/{name}", value, samples)

    def close(self) -> None:
        self._writer.close()
