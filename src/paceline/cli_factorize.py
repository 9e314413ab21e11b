"""The command `paceline factorize`. Everything heavy is imported inside it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from paceline.errors import ConfigError, Interrupted


def factorize(
    job: Annotated[Path, typer.Argument(help="job.yaml of a factorization (docs/gp-factorization.md)")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example model=gpfm split.validation=0.1")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept (default: runs/<name>-<number>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last epoch of --run-dir.")] = False,
) -> None:
    """Factorize context-aware ratings with Gaussian processes (GPLVMF, GPFM) or what they are compared with (FM,
    means).
    """
    from paceline.gp.config import FactorizeConfig
    from paceline.gp.story import factorize as run
    from paceline.jobfile import load
    from paceline.report import factorization as report
    from paceline.report.terminal import console_here
    from paceline.rundir import free_run_dir, storing

    if resume and run_dir is None:
        raise ConfigError("--resume needs --run-dir: which run is to go on?")
    config = load(job, overrides or [], FactorizeConfig, "a factorization is a mapping of keys (ratings, model, ...)")
    folder = run_dir or free_run_dir(job)
    console = console_here()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM does what Ctrl-C does
    with report.Display(console, config.training.epochs) as display:
        display.note(f"run directory: {folder}")
        try:
            run(config, job.parent.resolve(), folder, resume, display)
        except KeyboardInterrupt as error:
            told = f"interrupted; the epochs that are done are kept: go on with --resume --run-dir {folder}"
            raise Interrupted(told) from error
    report.show(console, folder)
    weights = report.importances(folder)
    if weights is not None:
        with storing(folder / report.PLOT):
            report.draw_importances(weights, folder / report.PLOT)
        console.print(f"plot: {folder / report.PLOT}", highlight=False)
