"""TensorBoard curves of a run. The step is the number of samples read, so runs at different paces line up.

Events are written by TensorBoard's own record writer, at once and in this thread: its usual writer has a thread that
prints a traceback when the disk is full.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from paceline.rundir import storing
from paceline.telemetry import Telemetry


class Curves:
    """Writes scalars; on a resume, points behind the checkpoint are hidden."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = folder
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"events.out.tfevents.{time.time_ns()}.paceline"
            self._writer: Any = RecordWriter(open(path, "wb"))  # noqa: SIM115  (closed by close)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed_at is not None:
            log = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed_at, session_log=log))

    def add(self, prefix: str, values: dict[str, Any], samples: int) -> None:
        """One point per number in `values`, at `samples`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=f"{prefix}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and value == value
        ]
        if points:
            self._write(Event(wall_time=time.time(), step=samples, summary=Summary(value=points)))

    def histograms(self, prefix: str, counted: Telemetry, samples: int) -> None:
        """Staleness (of gradients and rows) and norms (of gradients and updates) as histograms."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        points = []
        for name, limits, counts in counted.bins():
            if not counts:
                continue
            middles = [limit / 2 for limit in limits]
            proto = HistogramProto(
                min=0.0,
                max=limits[-1],
                num=sum(counts),
                sum=sum(m * c for m, c in zip(middles, counts, strict=True)),
                sum_squares=sum(m * m * c for m, c in zip(middles, counts, strict=True)),
                bucket_limit=limits,
                bucket=counts,
            )
            points.append(Summary.Value(tag=f"{prefix}/{name}", histo=proto))
        if points:
            self._write(Event(wall_time=time.time(), step=samples, summary=Summary(value=points)))

    def close(self) -> None:
        with storing(self._folder):
            self._writer.close()

    def _write(self, event: Any) -> None:
        with storing(self._folder):
            self._writer.write(event.SerializeToString())
            self._writer.flush()
