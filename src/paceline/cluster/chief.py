"""The coordinator's process: the run itself, told as everywhere else, with its parameters and workers elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from paceline.assembly import Job, make_replica
from paceline.cluster.body import ClusterBody
from paceline.cluster.keeper import ClusterKeeper
from paceline.cluster.office import Office
from paceline.cluster.traffic import Traffic
from paceline.config import JobConfig
from paceline.errors import ClusterLost
from paceline.exchange.far import FarShards
from paceline.exchange.group import open_store
from paceline.exchange.pulse import asked
from paceline.exchange.security import Security
from paceline.params.dense import slice_sizes
from paceline.params.feedback import kept_of_slices
from paceline.training import train


class Messages:
    """A watcher whose words wait until they are fetched; the run is interrupted in its next tick."""

    def __init__(self) -> None:
        self._said: deque[tuple[str, list[Any]]] = deque()
        self._lock = threading.Lock()
        self.interrupted = False
        self.lost: str | None = None

    def fetch(self) -> list[tuple[str, list[Any]]]:
        """Everything since the last call; of progress only the newest."""
        with self._lock:
            said, self._said = list(self._said), deque()
        newest = max((i for i, (what, _) in enumerate(said) if what == "tick"), default=-1)
        return [word for i, word in enumerate(said) if word[0] != "tick" or i == newest]

    def day(self, day: int, days: int) -> None:
        self._say("day", day, days)

    def tick(self, status: dict[str, Any]) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        if self.lost is not None:
            raise ClusterLost(self.lost)
        self._say("tick", status)

    def line(self, line: dict[str, Any]) -> None:
        self._say("line", line)

    def note(self, text: str) -> None:
        self._say("note", text)

    def recovered(self, seconds: float, rows: int) -> None:
        """Workers may begin, with so many samples read; so many seconds were lost in recoveries until now."""
        self._say("recovered", seconds, rows)

    def _say(self, what: str, *values: Any) -> None:
        with self._lock:
            self._said.append((what, list(values)))


def _silent(security: Security, addresses: list[str]) -> tuple[str, ...]:
    """Those that do not answer now."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        answers = list(pool.map(lambda a: asked(security, a, "statistics"), addresses))
    return tuple(a for a, answer in zip(addresses, answers, strict=True) if answer is None)


class Chief:
    """One process; each generation is one call of `run`."""

    def __init__(self, config: str, base: str, run_dir: str, security: Security, host: str = "127.0.0.1") -> None:
        self._config = JobConfig.model_validate(yaml.safe_load(config))
        self._base, self._run_dir, self._security, self._host = Path(base), Path(run_dir), security, host
        self._office: Office | None = None
        self._body: ClusterBody | None = None
        self._messages = Messages()
        self._store: Any = None

    def start(self) -> tuple[str, int]:
        """Open the office; its address, and the process's number."""
        if self._office is None:
            self._office = Office(self._security, self._host)
            self._office.note = self._office.held.note = self._messages.note
        return f"{self._host}:{self._office.port}", os.getpid()

    def meeting(self) -> tuple[str, int] | None:
        """Host and port of the store where processes form groups for steps, if the job's exchange has any."""
        if self._config.cluster is None or self._config.cluster.steps is None:
            return None
        if self._store is None:
            self._store = open_store(self._host)
        return self._host, self._store.port

    def run(
        self, generation: int, shards: list[str], resume: bool, recovered: tuple[int, float, float | None], workers: int
    ) -> tuple[str, Any]:
        """Train until the end or until something is lost: ("end", last metrics line), ("lost", (why, addresses of
        shards that cannot be reached)), ("interrupted", what was kept) or ("error", what). recovered: how often this
        run was lost before and the seconds that it took to go on, and time.time() when it was lost last; workers: how
        many there are now."""
        assert self._office is not None
        assert self._config.cluster is not None
        office, messages, cluster = self._office, self._messages, self._config.cluster
        messages.lost, self._body = None, None
        model = make_replica(self._config).model
        width = sum(part.width for part in model.parts())
        sizes = slice_sizes(model, len(shards))
        store = FarShards(self._security, shards, generation, sizes, width)
        thinning = None if self._config.compress is None else self._config.compress.thinning
        kept = None if thinning is None else kept_of_slices(model, len(shards), thinning)
        traffic = Traffic(sizes, width, cluster.nodes, workers, 2 if cluster.rows == "bf16" else 4, kept)

        def started() -> dict[str, Any]:
            times, seconds, lost_at = recovered
            seconds += 0.0 if lost_at is None else time.time() - lost_at
            read = None if self._body is None else self._body.samples_read
            messages.recovered(seconds, read or 0)
            return {"recoveries": times, "recovery_s": round(seconds, 3)}

        def body(job: Job) -> ClusterBody:
            self._body = ClusterBody(office, store, job.statistics, traffic, workers, started)
            return self._body

        def ready() -> None:
            office.begin(generation, len(shards) if cluster.steps is not None else 0, shards)

        def keeper(folder: Path, job: Job) -> ClusterKeeper:
            return ClusterKeeper(folder, job.config.checkpoint.keep, store, ready, office.held)

        try:
            config, base, threads = self._config, self._base, max(1, min(4, os.cpu_count() or 1))
            return "end", train(config, base, self._run_dir, resume, messages, body, threads, store, keeper)
        except ClusterLost as error:
            lost = store.failure if isinstance(store.failure, ClusterLost) else error
            return "lost", (str(lost), lost.unreachable and (_silent(self._security, shards) or lost.unreachable))
        except KeyboardInterrupt as error:
            return "interrupted", str(error)
        except Exception as error:  # raised again where the job was started
            return "error", error
        finally:
            office.begin(-generation)  # nobody's
            store.close()

    def messages(self) -> list[tuple[str, list[Any]]]:
        """What the run has said since the last call."""
        return self._messages.fetch()

    def staff(self, workers: int, away: list[str]) -> tuple[list[str], list[str], int | None]:
        """There are so many workers now, and those in `away` are to leave. Returns (workers that are at work, those of
        `away` that are not gone yet, samples read, or None where no worker may begin yet)."""
        assert self._office is not None
        joined, lingering = self._office.staff(set(away))
        body = self._body
        if body is not None:
            body.staff(workers)
        return joined, lingering, None if body is None else body.samples_read

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._messages.interrupted = True

    def lose(self, why: str) -> None:
        """The supervisor knows of a process that is gone."""
        self._messages.lost = why

    def hold(self) -> None:
        """Blocks for ever: whoever waits for its answer learns when the process dies."""
        threading.Event().wait()
