"""A factorization from its files to its metrics, told as a story.

The run directory: config.yaml; metrics.jsonl (a line per epoch, and one with the test's metrics); vocabulary.json;
checkpoint.safetensors; importances.json (GPLVMF); predictions.parquet (the test rows); skipped_rows.jsonl.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from paceline.errors import ConfigError, DataError, RunDirError
from paceline.gp.config import FactorizeConfig
from paceline.gp.encode import Rows, Vocabulary
from paceline.gp.fitting import Fitter
from paceline.gp.fm import Fm, UserMean
from paceline.gp.gpfm import Gpfm
from paceline.gp.gplvmf import Gplvmf
from paceline.gp.keeping import Progress, keep, kept
from paceline.gp.models import Model
from paceline.gp.ranking import ranking
from paceline.gp.ratings import Ratings, read_ratings
from paceline.rundir import CONFIG, METRICS, RunDir, replace_text, storing, whole_lines

VOCABULARY, IMPORTANCES, PREDICTIONS = "vocabulary.json", "importances.json", "predictions.parquet"
_MODELS: dict[str, type[Any]] = {"mean": UserMean, "fm": Fm, "gpfm": Gpfm, "gplvmf": Gplvmf}
_INSIDE = {50: 0.674490, 90: 1.644854}  # standard deviations to each side of a Gaussian's middle 50 and 90 %


class Watcher(Protocol):
    """Who is told how it goes."""

    def note(self, text: str) -> None: ...

    def tick(self, epochs: float) -> None: ...

    def line(self, line: dict[str, Any]) -> None: ...


class Nobody:
    """Tells nobody."""

    def note(self, text: str) -> None: ...

    def tick(self, epochs: float) -> None: ...

    def line(self, line: dict[str, Any]) -> None: ...


def factorize(
    config: FactorizeConfig, base: Path, run_dir: Path, resume: bool = False, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Train and test; returns the last line of metrics. base: where relative paths of files begin.

    resume: go on after the last epoch of a run directory; the result is bitwise that of a run that never stopped.
    Raises UserError for what the user can put right, LossError if the objective is not finite.
    """
    if resume and not run_dir.exists():
        raise RunDirError(f"{run_dir}: there is no run to go on with; check --run-dir, or leave --resume out")
    with RunDir(run_dir) as run:
        if run.started and not resume:
            raise RunDirError(f"{run_dir}: there is a run already; go on with --resume, or choose another --run-dir")
        if run.started:
            _check_same(run_dir, config)
        return _Run(config, run, watcher or Nobody()).go(base)


def _check_same(run_dir: Path, config: FactorizeConfig) -> None:
    """A run goes on with its own configuration, for more epochs if you like."""
    import yaml

    before, now = (_flat(yaml.safe_load(text)) for text in ((run_dir / CONFIG).read_text(), config.to_yaml()))
    for key in {**before, **now}:
        if before.get(key) != now.get(key) and key != "training.epochs":
            raise RunDirError(
                f"{run_dir}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; a run cannot go on with another"
            )


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {above: values}
    return {k: v for key, below in values.items() for k, v in _flat(below, f"{above}.{key}" if above else key).items()}


class _Run:
    def __init__(self, config: FactorizeConfig, run: RunDir, watcher: Watcher) -> None:
        self.config, self.run, self.watcher = config, run, watcher

    def go(self, base: Path) -> dict[str, Any]:
        config, run = self.config, self.run
        loaded = kept(run.path)
        if not run.started:
            with storing(run.path):
                (run.path / "skipped_rows.jsonl").unlink(missing_ok=True)
        train, validation, test = self._parts(base, tell=not run.started)
        vocabulary = Vocabulary.of(train)
        rows, held_out, asked = (vocabulary.encode(part) for part in (train, validation, test))
        with storing(run.path):
            replace_text(run.path / VOCABULARY, json.dumps(vocabulary.to_json()))
            replace_text(run.path / CONFIG, config.to_yaml())
            lines = whole_lines(run.path / METRICS)[: loaded[0].lines if loaded else 0]
            replace_text(run.path / METRICS, "".join(lines))
        self.watcher.note(
            f"{len(rows):,} rows to train on, {len(held_out):,} for validation, {len(asked):,} for the test;"
            f" {len(vocabulary.users):,} users, {len(vocabulary.items):,} items"
        )
        model = make_model(config, vocabulary, rows)
        progress = self._fit(model, held_out, loaded)
        line = self._test(model, vocabulary, rows, test, asked, progress)
        run.metrics(line)
        self.watcher.line(line)
        return line

    def _parts(self, base: Path, tell: bool) -> tuple[Ratings, Ratings, Ratings]:
        """(training, validation, test) rows."""
        config = self.config
        told = self.run.skipped if tell else lambda _: None
        rows = read_ratings(config.ratings.files, config.ratings, base, told)
        order = np.random.default_rng(config.seed).permutation(len(rows))
        if config.ratings.test is None:
            cut = round(len(rows) * config.split.test)
            test, order = rows.take(np.sort(order[:cut])), order[cut:]
        else:
            test = read_ratings(config.ratings.test, config.ratings, base, told)
        cut = round(len(order) * config.split.validation)
        validation, train = rows.take(np.sort(order[:cut])), rows.take(np.sort(order[cut:]))
        if not len(test) or not len(train) or (config.split.validation and not len(validation)):
            raise DataError(
                f"{len(rows):,} rows are too few for a split of {len(train):,} (training), {len(validation):,}"
                f" (validation) and {len(test):,} (test); change split.test or split.validation"
            )
        return train, validation, test

    def _fit(self, model: Model, held_out: Rows, loaded: Any) -> Progress:
        config, progress = self.config, Progress()
        if config.method == "none":
            return progress
        fitter, best = Fitter(model, config), model.state()
        if loaded is not None:
            progress, parts = loaded
            model.load(parts["now"])
            fitter.load(parts.get("slots", {}))
            best = parts.get("best", best)
            self.watcher.note(f"resumed after epoch {progress.epochs}")
        if progress.epochs > config.training.epochs:
            raise ConfigError(
                f"training.epochs is {config.training.epochs}, and the run has done {progress.epochs} already"
            )
        started = time.monotonic() - progress.seconds
        for number in range(progress.epochs, config.training.epochs):
            objective = fitter.epoch(number, lambda part, number=number: self.watcher.tick(number + part))  # type: ignore[misc]
            line: dict[str, Any] = {"event": "epoch", "epoch": number + 1, "objective": objective}
            progress = replace(progress, epochs=number + 1, lines=progress.lines + 1)
            if len(held_out):
                line |= {f"validation_{k}": v for k, v in errors(held_out, model.predict(held_out)[0]).items()}
                if progress.rmse is None or line["validation_rmse"] < progress.rmse:
                    progress, best = replace(progress, best=number + 1, rmse=line["validation_rmse"]), model.state()
            line["seconds"] = round(time.monotonic() - started, 3)
            progress = replace(progress, seconds=line["seconds"])
            self.run.metrics(line)
            keep(self.run.path, progress, {"now": model.state(), "best": best, "slots": fitter.slots()})
            self.watcher.line(line)
        if progress.best is not None:
            model.load(best)
        return progress

    def _test(
        self, model: Model, vocabulary: Vocabulary, rows: Rows, test: Ratings, asked: Rows, progress: Progress
    ) -> dict[str, Any]:
        mean, variance = model.predict(asked)
        deviation = variance.sqrt()
        ratings = asked.rating.numpy()
        line: dict[str, Any] = {"event": "test", "model": self.config.model.name, **errors(asked, mean)}
        highest = max(float(rows.rating.max()), float(asked.rating.max()))
        line |= ranking(asked.user.numpy(), mean.numpy(), ratings, self.config.relevant, highest)
        for share, width in _INSIDE.items():
            inside = ((asked.rating - mean).abs() <= width * deviation).double().mean()
            line[f"inside_{share}"] = None if bool(deviation.isnan().any()) else float(inside)
        line |= {"rows_train": len(rows), "rows_test": len(asked), "users": len(vocabulary.users)}
        line |= {"items": len(vocabulary.items), "epochs": progress.epochs, "best_epoch": progress.best}
        line["seconds"] = progress.seconds
        columns: dict[str, Any] = {"user": test.users, "item": test.items, **test.contexts, "rating": ratings}
        columns |= {"prediction": mean.numpy(), "deviation": deviation.numpy()}
        with storing(self.run.path):
            pq.write_table(pa.table(columns), self.run.path / PREDICTIONS)
            weights = model.importances()
            if weights is not None:
                replace_text(self.run.path / IMPORTANCES, json.dumps(weights, indent=1))
        return line


def make_model(config: FactorizeConfig, vocabulary: Vocabulary, rows: Rows) -> Model:
    """The configured model on training rows."""
    model: Model = _MODELS[config.model.name](config.model, vocabulary, rows, config.seed)
    return model


def errors(rows: Rows, mean: torch.Tensor) -> dict[str, float]:
    """Root mean squared and mean absolute error of predictions [n]."""
    apart = rows.rating - mean
    return {"rmse": float(apart.square().mean().sqrt()), "mae": float(apart.abs().mean())}
