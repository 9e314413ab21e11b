"""The main job as a story: for each day, evaluate on it, then train on it, then keep a checkpoint."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline import checkpoint
from paceline import pace as p
from paceline.assembly import Job, assemble
from paceline.batch import Batch, Span
from paceline.config import JobConfig
from paceline.curves import Curves
from paceline.data.moments import no_moments
from paceline.data.stream import FIRST, Plan, day_batches
from paceline.endings import check_account, unforeseen
from paceline.errors import ClusterLost, ConfigError, LossError, PacelineError, RunDirError, StorageError, TrainingError
from paceline.evaluate import evaluate_files, need_both_classes, run_config
from paceline.faults import worker_faults
from paceline.keeper import Keeper
from paceline.lessons import Lessons
from paceline.rankings import flat, rank_tests
from paceline.resume import check_same_days, check_same_job, file_names, resolved
from paceline.rundir import CHECKPOINTS, RunDir
from paceline.runtimes.body import Body, Store
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import LocalBody
from paceline.runtimes.precision import warn_of_bf16
from paceline.switching import Switching
from paceline.tally import Tally, count
from paceline.telemetry import Telemetry
from paceline.watcher import Silent, Watcher


def local_body(job: Job) -> Body:
    """Threads in this process, one for each replica."""
    return LocalBody(job.direct, job.replicas, job.statistics, worker_faults(job.config.inject, len(job.replicas)))


def local_keeper(folder: Path, job: Job) -> Keeper:
    """Of the shard in this process."""
    return Keeper(folder, job.config.checkpoint.keep, job.direct)


def train(
    config: JobConfig,
    base: Path,
    run_dir: Path,
    resume: bool = False,
    watcher: Watcher | None = None,
    body: Callable[[Job], Body] = local_body,
    replicas: int | None = None,
    store: Store | None = None,
    make_keeper: Callable[[Path, Job], Keeper] = local_keeper,
) -> dict[str, Any]:
    """Run the job and return its last metrics line.

    base: what relative paths in the configuration are relative to; body: where it runs; replicas: of the model, that
    compute at the same time (default: one for each worker); store, make_keeper: where the parameters are, and who
    keeps snapshots of them. Raises a PacelineError for everything that can be
    foreseen; whatever was trained until then is in the newest checkpoint.
    """
    if resume and not run_dir.exists():
        raise RunDirError(f"{run_dir}: there is no run to go on with; check --run-dir, or leave --resume out")
    if config.codistill is not None and config.codistill.group is None:
        raise ConfigError("codistill.group: which group is to be trained here? (`paceline train` starts all of them)")
    with RunDir(run_dir) as run:
        if run.started and not resume:
            raise RunDirError(f"{run_dir}: there is a run already; go on with --resume, or choose another --run-dir")
        if run.started:
            check_same_job(run_config(run_dir), config, run_dir)
        job = assemble(config, base, replicas, store)
        keeper = make_keeper(run.path / CHECKPOINTS, job)
        trainer = Trainer(job, run, watcher or Silent(), body(job), keeper)
        warn_of_bf16(config.precision, "" if store else job.replicas[0].device.type, trainer.watcher.note)
        trainer.begin()
        return trainer.go()


class Trainer:
    """One run. `begin` restores or starts, `go` does the days."""

    def __init__(self, job: Job, run: RunDir, watcher: Watcher, body: Body, keeper: Keeper) -> None:
        self.job, self.run, self.watcher, self.body, self.config = job, run, watcher, body, job.config
        self.day = 0
        self.evaluated = False  # whether `day` was evaluated already
        self.again: list[Span] = []  # spans of the checkpoint that were not read again yet
        self.seen = [0, 0]  # rows and clicks of `day` so far
        self.next = Span(0, FIRST, FIRST, no_moments(len(job.schema.dense)))
        self._keeper = keeper
        self._seconds = 0.0
        self._started = time.monotonic()
        self._day_rate = 0.0
        self.tally = Tally(body)
        self._trained_seconds = 0.0
        self._day_started: float | None = None
        self._saved_at = 0
        self._last_result: dict[str, Any] = {}
        self._drawn = 0.0
        self._switching = Switching(job.config, run.path, watcher.note)
        codistill = job.config.codistill
        self._lessons = None if codistill is None else Lessons(codistill, run.path, watcher.note)
        if job.statistics.holding is not None:
            job.statistics.holding.note = watcher.note

    # --- beginning ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Restore the newest checkpoint, or start at the first day."""
        loaded = self._keeper.load(self.job.statistics)
        lines, trace_bytes, skipped, counted = 0, 0, 0, Telemetry()
        if loaded is None:
            machine = p.begin(self._switching.begin(0, 0, None))
        else:
            state = loaded.state
            check_same_days(state["files"], self.job.days, self.run.path)
            self.day, self.evaluated = state["day"], state["evaluated"]
            self.next = Span.from_json(state["next"])
            self.again = [Span.from_json(span) for span in state["again"]]
            self.seen = list(state["seen"])
            self._seconds, self._trained_seconds = state["seconds"], state["trained_seconds"]
            self._last_result, self._day_rate = state["last_result"], state["day_rate"]
            counted = self.tally.restore(state["tally"])
            lines, trace_bytes, skipped = state["metrics_lines"], state["trace_bytes"], state["rows_skipped"]
            account = state["machine"]["account"]
            pace = self._switching.begin(self.day, account["applied"] + account["dropped"], state["switching"])
            machine = p.from_json(state["machine"], pace)
            self.watcher.note(
                f"resumed from {loaded.path.name}: day {self.day}, {machine.account.read:,} settled, {pace.name}"
            )
        self.run.begin(resolved(self.job).to_yaml(), lines, trace_bytes, self.day, self._switching.decisions)
        self.run.trace(p.start_line(machine))
        self.curves = Curves(self.run.path / "curves", machine.account.read if loaded else None)
        self.coordinator = Coordinator(
            machine,
            self.job.route,
            self.run.trace,
            self._on_read,
            self._on_update,
            self.body.clock,
            self._before_read,
            self.job.statistics,
        )
        self.coordinator.pilot = self._switching.pilot
        if self._lessons is not None:
            self.coordinator.teachers = self._lessons.begin(None if loaded is None else loaded.state["lessons"])
        self.coordinator.progress.rows_skipped = skipped
        self.coordinator.telemetry = counted
        self._saved_at = machine.account.read
        for switch in self.config.switch:
            if isinstance(switch.at, str) and int(switch.at.removeprefix("day_")) >= len(self.job.days):
                self.watcher.note(f"switch at {switch.at}: there are {len(self.job.days)} days only, from day_0")

    # --- the days -----------------------------------------------------------------------------------------------

    def go(self) -> dict[str, Any]:
        """Every day that is left, then the totals."""
        try:
            while self.day < len(self.job.days):
                self.watcher.day(self.day, len(self.job.days))
                try:
                    self._one_day()
                except BaseException as error:
                    raise self._stopped(error) from error
            if self.job.interactions is not None and not self.evaluated:
                self._rank()  # the last epoch has no next one to be evaluated before
            return self._end()
        finally:
            self._keeper.close()
            self.curves.close()

    def _one_day(self) -> None:
        if not self.evaluated and self.day > 0 and self.config.evaluate == "next_day":
            if self.job.interactions is None:
                self._evaluate()
            else:
                self._rank()
        self.evaluated = True
        self._switching.follow_plan(self.coordinator, self.day)
        self._train_day()
        if self.config.evaluate == "next_day" and self.job.interactions is None:
            need_both_classes(self.seen[0], self.seen[1], self.job.days[self.day], self.day)
        self.day, self.evaluated, self.seen = self.day + 1, False, [0, 0]
        self.next = Span(self.day, FIRST, FIRST, self._moments())
        self._save([])
        self._keeper.wait()

    def _evaluate(self) -> None:
        files = self.job.days[self.day]
        counters = evaluate_files(self.job, files, self.day, self.next.moments)
        need_both_classes(counters.rows, counters.positive_rows, files, self.day)
        self._told(counters.result())

    def _rank(self) -> None:
        """After an epoch: rank what was held out, if anything was and it is this epoch's turn."""
        given, last = self.config.interactions, self.day == len(self.job.days)
        assert given is not None
        if self.config.evaluate == "next_day" and (last or self.day % given.ranking.every == 0):
            result = rank_tests(self.job, self.job.days[0])
            if result:
                self._told({"ranking": result})

    def _told(self, result: dict[str, Any]) -> None:
        """Write an evaluation's line."""
        self._last_result = result
        line = self._line("evaluation", self._day_rate)
        self.run.metrics(line)
        self.evaluated = True  # from here on a resume does not evaluate this day again
        self.curves.add("evaluation", flat(self._last_result), line["samples_read"])
        self.watcher.line(line)

    def _train_day(self) -> None:
        account = self.coordinator.machine.account
        read, started = account.read, time.monotonic()
        self.tally.begin_day(account)
        place = (self.day, self.config.local_batch, self.next.start, self.next.moments)
        plan = Plan(*place, again=tuple(self.again), share=self.config.share)
        self._day_started = started
        try:
            with contextlib.closing(day_batches(self.job.source, self.job.days[self.day], plan)) as source:
                self.body.run_day(self.coordinator, source, self._watch)
        finally:
            took = time.monotonic() - started
            self._trained_seconds += took
            self._day_started = None
        self._day_rate = (account.read - read) / took if took else 0.0
        self.job.statistics.export()
        self._tell_day()

    def _tell_day(self) -> None:
        """Write what was counted in a trained day, and count anew."""
        self._tell_decisions()
        account, counted = self.coordinator.machine.account, count(self.coordinator, self.job.route)
        self.tally.end_day(account, counted)
        told = {"day": self.day, "pace": self.coordinator.machine.pace.name, "samples_read": account.read}
        self.run.histograms({**told, **self.tally.last_day, **counted.to_json()})
        self.curves.histograms("day", counted, account.read)
        self.coordinator.telemetry = Telemetry()

    # --- while workers run --------------------------------------------------------------------------------------

    def _on_read(self, batch: Batch) -> None:
        """Note what was read (under the coordinator's lock)."""
        self.again = [span for span in self.again if span.start != batch.span.start]
        self.seen = [self.seen[0] + batch.samples, self.seen[1] + int(batch.labels.sum())]
        self.run.skipped(batch.skipped)

    def _before_read(self, _: Batch) -> None:
        """Switch the pace, or go on with other teachers, if that was due with the batch before this one."""
        self._switching.follow_plan(self.coordinator, self.day)
        if self._lessons is not None:
            self._lessons.follow(self.coordinator)

    def _on_update(self, coordinator: Coordinator) -> None:
        # A simulation waits for the last one to be written: its trace may not depend on how quick the disk is.
        free = self._keeper.free() or self.body.virtual
        if free and coordinator.machine.account.read - self._saved_at >= self.config.saved_every:
            coordinator.snapshot(self._save)

    def _watch(self) -> None:
        self._switching.follow_requests(self.coordinator, self.body.virtual)
        self._tell_decisions()
        account, progress = self.coordinator.machine.account, self.coordinator.progress
        status = {
            "rows": account.read,
            "loss": progress.loss,
            "staleness": progress.staleness,
            "dropped": account.dropped,
            "virtual_seconds": self.body.clock() if self.body.virtual else None,
        }
        self.watcher.tick(status)
        now = time.monotonic()
        if now - self._drawn > 2.0 and account.updates:
            self._drawn = now
            counted = count(self.coordinator, self.job.route)
            values = {"loss": progress.loss, "staleness": progress.staleness, "idle_share": counted.idle_share}
            values |= {"dropped_share": account.dropped / max(account.read, 1), **self.tally.live(account)}
            self.curves.add("training", values, account.read)
            self.curves.histograms("training", counted, account.read)

    def _tell_decisions(self) -> None:
        for told in self._switching.tell_decisions(self.coordinator):
            self.run.decision(told)

    # --- keeping and ending -------------------------------------------------------------------------------------

    def _moments(self) -> Any:
        following = self.coordinator.next_span
        return following.moments if following is not None else self.next.moments

    def _save(self, pending: list[Batch]) -> None:
        """Have a checkpoint written of what is now. pending: batches that are out; they will be read again."""
        coordinator = self.coordinator
        following = coordinator.next_span if pending or self.evaluated else None
        state = {
            "machine": p.to_json(coordinator.machine),
            "day": self.day,
            "evaluated": self.evaluated,
            "files": file_names(self.job.days[: self.day + 1]),
            "next": (following if following is not None and following.day == self.day else self.next).to_json(),
            "again": [span.to_json() for span in (*(batch.span for batch in pending), *self.again)],
            "seen": [
                self.seen[0] - sum(batch.samples for batch in pending),
                self.seen[1] - sum(int(batch.labels.sum()) for batch in pending),
            ],
            "metrics_lines": self.run.metrics_lines(),
            "trace_bytes": self.run.trace_bytes(),
            "rows_skipped": coordinator.progress.rows_skipped - sum(len(batch.skipped) for batch in pending),
            "seconds": self._total_seconds(),
            "trained_seconds": self._trained_seconds
            + (0.0 if self._day_started is None else time.monotonic() - self._day_started),
            "day_rate": self._day_rate,
            "tally": self.tally.to_json(count(coordinator, self.job.route)),
            "last_result": self._last_result,
            "switching": self._switching.to_json(),
            "lessons": None if self._lessons is None else self._lessons.to_json(),
        }
        if coordinator.machine.version != self.job.route.version:
            raise TrainingError(
                f"version {coordinator.machine.version} was decided and {self.job.route.version} is there: not stored"
            )
        self._keeper.wait()
        copy = self._keeper.take()
        own = self.job.statistics.tensors(coordinator.machine.version)
        self._keeper.write(copy, state, coordinator.progress.sound, own)
        self._saved_at = coordinator.machine.account.read

    def _stopped(self, error: BaseException) -> BaseException:
        """What to raise when a day could not be finished, with the state kept where it is worth keeping."""
        error = self._keeper.settled(error)
        self._tell_decisions()
        if isinstance(error, ClusterLost):
            return error  # who watches over the cluster goes on from the last snapshot
        if isinstance(error, LossError):
            left = checkpoint.set_aside(self._keeper.folder, self.coordinator.progress.sound)
            way_on = f"go on from version {left.name} with --resume and lower rates" if left else "nothing was kept"
            told = error.file is not None and self.job.interactions is None  # an epoch's rows are of all files
            where = f" in {self.job.days[self.day][error.file or 0]}" if told else ""
            return LossError(f"{error}{where}\n({way_on})")
        way_on = "go on with --resume from the last checkpoint"
        if not self.coordinator.machine.version and not self.coordinator.settling:
            self.run.forget()
            way_on = "nothing was trained yet: start again, with or without --resume"
        elif not isinstance(error, StorageError) and not self.coordinator.settling:
            self.coordinator.snapshot(self._save)
            self._keeper.wait()
            machine = self.coordinator.machine
            account = machine.account
            check_account(account, machine.in_flight)
            way_on = (
                f"everything until here is kept: {account.read:,} samples read = {account.applied:,} applied"
                f" + {account.dropped:,} dropped + {machine.in_flight:,} under way, {account.updates:,} updates;"
                " go on with --resume"
            )
        if isinstance(error, KeyboardInterrupt):
            return KeyboardInterrupt(f"interrupted; {way_on}")
        if isinstance(error, PacelineError):
            return type(error)(f"{error}\n({way_on})")
        return unforeseen(error, self.job.route, self.run.path, way_on)

    def _total_seconds(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _line(self, event: str, rate: float) -> dict[str, Any]:
        machine, result = self.coordinator.machine, self._last_result
        account = machine.account
        return {
            "event": event,
            "day": self.day,
            **{key: result.get(key) for key in ("auc", "logloss", "gauc", "ne", "calibration")},
            **({} if self.job.interactions is None else {"ranking": result.get("ranking")}),
            "samples_read": account.read,
            "samples_applied": account.applied,
            "samples_dropped": account.dropped,
            "rows_skipped": self.coordinator.progress.rows_skipped,
            "updates": account.updates,
            "samples_per_s": round(rate, 1),
            "pace": machine.pace.name,
            "seconds": round(self._total_seconds(), 3),
            "ids": self.job.route.ids,
            "virtual_seconds": round(self.body.clock(), 6) if self.body.virtual else None,
            "switch_pause_s": self._switching.longest_pause(self.coordinator),
            **self.body.told(),
            **self.tally.last_day,
        }

    def _end(self) -> dict[str, Any]:
        account = self.coordinator.machine.account
        check_account(account, 0)
        self.day = len(self.job.days) - 1
        rate = account.read / self._trained_seconds if self._trained_seconds else 0.0
        self.tally.end(account)
        line = self._line("end", rate)
        self.run.metrics(line)
        self.run.trace_bytes()
        self.watcher.line(line)
        return line
