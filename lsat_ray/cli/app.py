"""The command line: `lsat-ray replay | study | sweep | search | validate | doctor | fetch | serve`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import lsat_ray
from lsat_ray import config as configs
from lsat_ray.cli import front, trial
from lsat_ray.cli.console import console, one_clear_error, print_table, run, say
from lsat_ray.cli.plugins import load_plugins

Config = Annotated[Path | None, typer.Option("--config", help="YAML of the experiment (default: the embedded one).")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run (default: the config's).")]
RunsDir = Annotated[str | None, typer.Option("--runs-dir", help="Folder in which runs lie (default: runs).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")]
Import = Annotated[
    list[str] | None,
    typer.Option("--import", help="File or module that registers strategies, as in my_rules.py; may be repeated."),
]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(trial.app, name="trial")


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Replay, compare and serve an LLM recommender over a stream of feedback."""
    if version:
        console.print(f"lsat_ray {lsat_ray.__version__}", markup=False)
        raise typer.Exit


@app.command(short_help="Replay the stream period by period.")
def replay(
    config: Config = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    set_: Set = None,
    import_: Import = None,
) -> None:
    """Replay the stream: train, search, serve and measure every strategy period by period.

    The same command resumes where it was stopped.
    """
    with one_clear_error():
        experiment = configs.load(config, set_ or [], name)
        load_plugins(import_ or [])
        folder = front.replay(experiment, runs_dir, say)
        print_table(folder, experiment.study.noise)
        say(f"results in {folder}, report in {folder / 'report.html'}")


@app.command(short_help="Compare strategies on a finished log.")
def study(
    config: Config = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    set_: Set = None,
    import_: Import = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Run seeds 0 to N - 1.")] = None,
) -> None:
    """Compare strategies on a finished log: the LSAT paper's Table 2 and Figures 2 to 5, with statistics.

    Trains every distinct adapter once, as many at a time as there are sessions. The same command resumes.
    """
    with one_clear_error():
        overrides = [*(set_ or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
        experiment = configs.load(config, overrides, name)
        load_plugins(import_ or [])
        folder = front.study(experiment, runs_dir, say)
        if experiment.data.format == "blocks":
            say(f"table in {folder / 'table.csv'}, differences in {folder / 'paired.csv'}")
        else:
            print_table(folder, experiment.study.noise)
            say(f"table in {folder / 'table2.csv'}, trainings in {folder / 'trainings.csv'}")
        say(f"report in {folder / 'report.html'}")


@app.command(short_help="Run a study for several values of a setting.")
def sweep(
    vary: Annotated[list[str], typer.Option("--vary", help="section.key=[value, ...]; several change together.")],
    config: Config = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    set_: Set = None,
    import_: Import = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Row to compare with; may be repeated.")
    ] = None,
) -> None:
    """Run the study of a config for every value of a setting and set the results side by side.

    Drift, half-life, rank, adapted modules, the size of m and the length of a period are all questions of this form.
    The same command resumes; values that were run before are reused.
    """
    with one_clear_error():
        load_plugins(import_ or [])
        table, folder = front.sweep(vary, config, set_ or [], name, runs_dir, against or [], say)
        shown = table[["value", "against", "strategy", "mean_auc", "verdict"]].round(4)
        console.print(shown.to_string(index=False), markup=False)
        say(f"table and figures in {folder}")


@app.command(short_help="Serve what a run published.")
def serve(
    run: Annotated[Path, typer.Argument(help="Folder of a replay, finished or running.")],
    follow: Annotated[bool, typer.Option("--follow", help="Wait for a replay that has just begun.")] = False,
    port: Annotated[int | None, typer.Option("--port", help="Port (default: the run's serve.port).")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address (default: the run's serve.host).")] = None,
    set_: Set = None,
) -> None:
    """Serve what a run published last, and every change of it: new periods, trials, promotions.

    On Ray Serve, or in this process with --set engine.backend=local. The same command takes up after any failure.
    """
    with one_clear_error():
        given = {"serve.port": port, "serve.host": host}
        front.serve(run, [*(set_ or []), *(f"{k}={v}" for k, v in given.items() if v is not None)], follow, say)


@app.command(short_help="Show what the searches of a run found.")
def search(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished replay.")],
    flat: Annotated[float, typer.Option("--flat", help="Difference within which coefficients count as equal.")] = 0.002,
) -> None:
    """Open a run's searches with Ray Tune's own API; print and plot what was chosen and how flat the optimum is."""
    from lsat_ray.cli.searches import open_experiments, summary, write_figures

    with one_clear_error(resumes=False):
        from lsat_ray.report.reader import RunReader

        trials = open_experiments(run)
        console.print(summary(trials, flat, RunReader(run).select).to_string(index=False), markup=False)
        say("figures: " + ", ".join(map(str, write_figures(run))))


@app.command(short_help="Check a config and its log.")
def validate(
    path: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML of the experiment.")] = None,
    config: Config = None,
    name: Name = None,
    set_: Set = None,
    import_: Import = None,
) -> None:
    """Check a config and its log; nothing is written and no GPU is needed."""
    with one_clear_error(resumes=False):
        experiment = configs.load(path or config, set_ or [], name)
        load_plugins(import_ or [])
        front.validate(experiment, say)
        say(f"{path or config or 'the embedded default'}: valid")


@app.command(short_help="Check this machine against a config.")
def doctor(
    config: Config = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    set_: Set = None,
    import_: Import = None,
) -> None:
    """Say what this machine, the config and its log have to do with each other, one line each, with the remedy."""
    from lsat_ray.cli.doctor import examine

    with one_clear_error(resumes=False):
        experiment = configs.load(config, set_ or [], name)
        load_plugins(import_ or [])
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        worst = "ok"
        for finding in examine(experiment, front.runs_folder(runs_dir)):
            console.print(f"{finding.level:<4}", style=colours[finding.level], end="  ")
            console.print(finding.line(), markup=False)
            worst = max(worst, finding.level, key=list(colours).index)
    if worst == "fail":
        sys.exit(1)


@app.command(short_help="Download a public log.")
def fetch(
    log: Annotated[str, typer.Argument(help="Name of a public log, such as ml-1m.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that it goes to.")] = Path("data"),
) -> None:
    """Download a public log from its owner, after its licence has been shown, and check what came."""
    with one_clear_error():
        from lsat_ray.data.fetch import fetch as download

        say(f"unpacked in {download(log, to)}")


def main_program() -> None:
    """Run `lsat-ray`."""
    run(partial(app, prog_name="lsat-ray"))


def command(function: Callable[..., None]) -> typer.Typer:
    """Return an application of one command, for the entry points in `jobs/`."""
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command()(function)
    return one
