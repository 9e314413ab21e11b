"""The command line. Everything heavy is imported inside a command, so `--help` is quick."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from paceline import __version__
from paceline.cli_factorize import factorize
from paceline.cli_plan import plan, split
from paceline.errors import ConfigError, DataError, Interrupted, PacelineError, RunDirError

app = typer.Typer(
    name="paceline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train click-through-rate and recommender models from logs, day after day, at any pace.",
)


def main() -> NoReturn:
    """Entry point: errors that paceline raises on purpose are one message, never a traceback.

    Exit codes: 0 done, 1 the run could not go on, 2 the user's mistake, 130 interrupted.
    """
    try:
        code = app(standalone_mode=False)
    except PacelineError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted")
        sys.exit(130)
    except Exception as error:
        # A usage error. Typer brings click along under one name or another, so the class is told by its name.
        if any(cls.__name__ == "ClickException" for cls in type(error).__mro__):
            shown: Any = error
            shown.show()
            sys.exit(2)
        if type(error).__name__ == "Abort":
            _say(str(error.__cause__ or "") or "interrupted")
            sys.exit(130)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    print(f"paceline: {text}", file=sys.stderr)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit


app.command()(factorize)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    job: Annotated[Path, typer.Argument(help="job.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example pace.name=gba workers=4")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept (default: runs/<name>-<number>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --run-dir.")] = False,
) -> None:
    """Train the job, day by day; each day is evaluated before it is trained on."""
    from paceline.jobfile import load_config

    config = load_config(job, overrides)
    base = job.parent.resolve()
    if config.codistill is not None and config.codistill.group is None:
        _train_groups(job, overrides or [], config.codistill.groups, run_dir, resume)
        return
    if config.cluster is not None:
        from paceline.cluster.supervisor import train_on_cluster as run_job
    else:
        from paceline.training import train as run_job
    _run(job, config, run_dir, resume, lambda folder, terminal: run_job(config, base, folder, resume, terminal))


def _train_groups(job: Path, overrides: list[str], groups: int, run_dir: Path | None, resume: bool) -> None:
    from paceline.groups import train_groups
    from paceline.rundir import free_run_dir

    if resume and run_dir is None:
        raise ConfigError("--resume needs --run-dir: which run is to go on?")
    folder = run_dir or free_run_dir(job)
    typer.echo(f"run directory: {folder}")
    signal.signal(signal.SIGTERM, _stop)
    model = train_groups(job, overrides, groups, folder, resume, typer.echo)
    typer.echo(f"the model to serve: {model}")


def _run(job: Path, config: Any, run_dir: Path | None, resume: bool, go: Callable[[Path, Any], object]) -> None:
    """Call go(run directory, terminal) and show what came of it."""
    from paceline.assembly import day_files
    from paceline.inspect import truth_of
    from paceline.report.terminal import Terminal
    from paceline.rundir import free_run_dir, read_metrics

    if resume and run_dir is None:
        raise ConfigError("--resume needs --run-dir: which run is to go on?")
    folder = run_dir or free_run_dir(job)
    console = _console()
    signal.signal(signal.SIGTERM, _stop)
    with Terminal(console) as terminal:
        terminal.note(f"run directory: {folder}")
        try:
            go(folder, terminal)
        except KeyboardInterrupt as error:  # typer would swallow its message
            raise Interrupted(str(error)) from error
    try:
        files = day_files(config, job.parent.resolve())
    except DataError:  # on a cluster only the coordinator has to see the data
        files = []
    terminal.summary(read_metrics(folder), truth_of(files))


@app.command()
def simulate(
    job: Annotated[Path, typer.Argument(help="job.yaml")],
    cluster: Annotated[Path, typer.Argument(help="cluster.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the job, for example pace=gba; of the cluster: workers=, cluster.key="),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept (default: runs/<name>-<number>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --run-dir.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Real threads (default: one for each core).")] = None,
    stacked: Annotated[
        int, typer.Option(min=1, help="Gradients that one thread computes in one go: quicker, same but for rounding.")
    ] = 1,
) -> None:
    """Train the job on a cluster that is only described: real gradients, virtual time."""
    from paceline.clusterfile import load_cluster
    from paceline.jobfile import load_config
    from paceline.simulation import simulate as run_simulation

    ours, its = split(overrides or [])
    spec = load_cluster(cluster, its)
    config = load_config(job, [*ours, f"workers={spec.workers}", "cluster=null"])
    base, cluster_base = job.parent.resolve(), cluster.parent.resolve()
    _run(
        job,
        config,
        run_dir,
        resume,
        lambda folder, terminal: run_simulation(
            config, spec, base, folder, cluster_base, resume, terminal, threads, stacked
        ),
    )


app.command()(plan)


def _stop(*_: object) -> NoReturn:
    """SIGTERM does what Ctrl-C does (also where SIGINT is ignored, as in a background job of a script)."""
    raise KeyboardInterrupt


@app.command()
def pace(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run that is going on")],
    name: Annotated[str, typer.Argument(help="sync, gba, async, ... (docs/pace.md)")],
    options: Annotated[list[str] | None, typer.Argument(help="key=value of the pace, such as max_staleness=4")] = None,
) -> None:
    """Change the pace of a running job. No row moves, nothing is started again."""
    from paceline.evaluate import run_config
    from paceline.jobfile import override
    from paceline.switching import ask_pace

    config = override(run_config(run_dir), [f"pace={name}", *(f"pace.{option}" for option in options or [])])
    told = ask_pace(run_dir, config.pace)
    typer.echo(
        f"{told['pace']} from {told['samples_read']:,} samples on; {told['pause_s'] * 1e3:,.1f} ms to its first lease"
    )


@app.command(context_settings={"ignore_unknown_options": True})  # so that -1 is told to be no number of helpers
def workers(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run that is going on")],
    helpers: Annotated[int, typer.Argument(metavar="N", help="How many helpers (cluster.workers) it is to have.")],
) -> None:
    """Have more or fewer helpers in a running job on a cluster. The global batch stays what it is."""
    from paceline.staffing import ask_workers

    told = ask_workers(run_dir, helpers)
    typer.echo(f"{told['helpers']} helpers, {told['workers']} workers in all from {told['samples_read']:,} samples on")
    if told["short"]:
        missing = f"{len(told['short'])} fewer than asked for: {told['short'][0]}"
        raise RunDirError(f"{run_dir}: {missing}; the run goes on with what it has")


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory")],
    data: Annotated[list[str], typer.Option("--data", help="File, glob or URL; may be given several times.")],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Evaluate a run's newest checkpoint on files in the format it was trained on."""
    import json

    from rich.table import Table

    from paceline.evaluate import evaluate_run

    result = evaluate_run(run_dir, data)
    if json_:
        typer.echo(json.dumps(result))
        return
    table = Table(title=f"{run_dir} on {', '.join(data)}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in result.items():
        table.add_row(key, "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6f}")
    _console().print(table)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(help="A run directory")],
    data: Annotated[list[str], typer.Option("--data", help="File, glob or URL; may be given several times.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write: file, row, score, label.")],
) -> None:
    """Score rows with a run's newest checkpoint; the label column may be absent."""
    from paceline.evaluate import predict_run

    rows = predict_run(run_dir, data, out)
    typer.echo(f"{rows:,} scores in {out}")


def _console() -> Any:
    from paceline.report.terminal import console_here

    return console_here()


def _rows(text: str | int) -> int:
    plain = str(text).replace("_", "").replace(",", "")
    if not re.fullmatch(r"\d+", plain):
        raise typer.BadParameter(f"{text!r} is no whole number, such as 10_000_000")
    return int(plain)


@app.command()
def synth(
    rows: Annotated[int, typer.Option(parser=_rows, metavar="N", help="Rows in all, for example 10_000_000.")],
    out: Annotated[Path, typer.Option(help="The directory for the files.")],
    days: Annotated[int, typer.Option(help="Files, one a day.")] = 7,
    layout: Annotated[str, typer.Option(help="criteo (text) or parquet (with bags of ids and users).")] = "criteo",
    compression: Annotated[str, typer.Option(help="Of text: gz, zst or none.")] = "gz",
    drift: Annotated[float, typer.Option(help="Radians that the truth turns by from day to day.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Of truth and draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")] = False,
) -> None:
    """Write a synthetic click log whose best possible AUC is known, and a job.yaml that trains on it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from paceline.data.synth import SynthSpec
    from paceline.data.synth_write import write_log
    from paceline.rundir import storing
    from paceline.starter import write_job

    spec = SynthSpec(
        rows=rows,
        days=days,
        seed=seed,
        layout=layout,  # type: ignore[arg-type]
        compression=compression,  # type: ignore[arg-type]
        drift=drift,
    )
    console = _console()
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress, storing(out):
        task = progress.add_task("rows", total=rows)
        report = write_log(spec, out, lambda n: progress.advance(task, n), overwrite=overwrite)
        job = write_job(spec, out)
    table = Table(title=f"{out}: the best possible", title_justify="left")
    for name in ("file", "rows", "click rate", "best AUC", "best log loss"):
        table.add_column(name, justify="left" if name == "file" else "right")
    names = [*(file.name for file in report.files), "all days"]
    for name, day in zip(names, (*report.days, report.total), strict=True):
        auc = "–" if day.best_auc is None else f"{day.best_auc:.5f}"
        table.add_row(name, f"{day.rows:,}", f"{day.click_rate:.4f}", auc, f"{day.best_logloss:.5f}")
    console.print(table)
    console.print(f"train on it: paceline train {job}", highlight=False)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A file, glob, URL or run directory")],
) -> None:
    """Show what is in a file or a run; suggests a schema for a file."""
    from rich.table import Table

    from paceline import inspect as looking
    from paceline.report.terminal import account_text, print_evaluations

    console = _console()
    if "://" not in path and (Path(path) / "vocabulary.json").exists():
        from paceline.report.factorization import show

        show(console, Path(path))
        return
    if "://" not in path and Path(path).is_dir():
        run = looking.inspect_run(Path(path))
        print_evaluations(console, run.lines)
        if run.lines and run.lines[-1]["event"] == "end":
            console.print(account_text(run.lines[-1]), highlight=False)
        if run.checkpoint is None:
            console.print("no checkpoint yet")
        else:
            where = f"day {run.state['day']}" + (", in its middle" if run.state["evaluated"] else "")
            console.print(f"newest checkpoint: {run.checkpoint} ({run.ids:,} ids, next: {where})", highlight=False)
        return
    found = looking.inspect_data(path)
    rows = f"{found.rows:,} rows" if found.whole else f"first {found.rows:,} rows"
    table = Table(title=f"{found.path}: {found.format}, {rows}", title_justify="left")
    for name in ("column", "kind", "distinct", "missing", "examples"):
        table.add_column(name, justify="right" if name in ("distinct", "missing") else "left")
    for column in found.columns:
        examples = ", ".join(e[:20] for e in column.examples)
        table.add_row(column.name, column.kind, f"{column.distinct:,}", f"{column.missing:,}", examples)
    if found.columns:
        console.print(table)
    typer.echo("A job for it (check label and kinds, then train):\n")
    typer.echo(found.yaml())  # as it is: a console would wrap long lines


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run directories; the first is the baseline.")],
    out: Annotated[Path | None, typer.Option(help="Draw a plot into this file: .png, .svg or .pdf.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    churn: Annotated[
        bool, typer.Option("--churn", help="Also by how much predictions differ from the first run's.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Rows for --churn: a path, glob or URL (default: the last day).")
    ] = None,
) -> None:
    """Compare runs, to choose a pace: AUC over samples and over time."""
    import json

    from paceline.report.compare import compare_runs, print_comparison
    from paceline.report.plot import draw

    if data and not churn:
        raise ConfigError("--data is for --churn; add --churn or leave it out")
    comparison = compare_runs(run_dirs)
    found = []
    if churn:
        from paceline.report.churn import churn as churn_of

        found = churn_of(run_dirs, data or [])
    if out is not None:
        draw(comparison, out)
    if json_:
        told = comparison.to_json()
        if found:
            told["churn"] = [{"run": each.run, "rows": each.rows, "churn": each.churn} for each in found]
        typer.echo(json.dumps(told))
        return
    print_comparison(_console(), comparison)
    for each in found:
        typer.echo(f"churn of {each.run}: {each.churn:.5f} on {each.rows:,} rows, against {run_dirs[0]}")
    if out is not None:
        typer.echo(f"plot: {out}")


if __name__ == "__main__":
    main()
