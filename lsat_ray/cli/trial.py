"""`lsat-ray trial`: put a model on trial, promote it, roll back, by replacing the run's `current.json`.

Whoever serves the run with `lsat-ray serve` takes the change within about a second, on all replicas at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lsat_ray.cli.console import one_clear_error, say
from lsat_ray.errors import LsatError

if TYPE_CHECKING:
    from lsat_ray.scoring.served import Served
    from lsat_ray.serving.promotion import Verdict

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Try, promote and roll back what a run serves.")
Run = Annotated[Path, typer.Argument(help="Folder of the run.")]


@app.command()
def shadow(run: Run, model: Annotated[str, typer.Argument(help="Name of a served model.")]) -> None:
    """Score live requests with a served model too, beside the one that answers; nobody sees its answers."""
    from lsat_ray.scoring.served import published

    with one_clear_error(resumes=False):
        current = published(run)
        _change(run, current.shadowing(current.select(model)))


@app.command()
def canary(run: Run, share: Annotated[float, typer.Argument(help="Share of the users, 0 to 1.")]) -> None:
    """Let the model on trial answer a share of the users, always the same ones."""
    from lsat_ray.scoring.served import published

    with one_clear_error(resumes=False):
        _change(run, published(run).trying(share))


@app.command()
def promote(
    run: Run,
    if_better: Annotated[
        bool,
        typer.Option("--if-better", help="Only when its prequential log-loss is lower, by the study's interval."),
    ] = False,
) -> None:
    """Let the model on trial answer everybody who names no model. Exit status 1: it is not better, nothing changed."""
    from lsat_ray.scoring.served import published

    with one_clear_error(resumes=False):
        following = published(run).promoted()
        _check_default(run, following.names[0])
        verdict = compare(run) if if_better else None
        if verdict:
            say(verdict.words())
        if verdict is None or verdict.better:
            _change(run, following)
            return
    say("not promoted; the trial goes on")
    raise typer.Exit(1)


@app.command()
def withdraw(run: Run) -> None:
    """End the trial; what answers stays."""
    from lsat_ray.scoring.served import published

    with one_clear_error(resumes=False):
        _change(run, published(run).withdrawn())


@app.command()
def rollback(run: Run, period: Annotated[int, typer.Argument(help="Period whose models shall be served.")]) -> None:
    """Serve again what was served last with models of an earlier period."""
    from lsat_ray.scoring.served import earlier

    with one_clear_error(resumes=False):
        _change(run, earlier(run, period))


def compare(run: Path) -> Verdict:
    """Judge the model on trial against the one that answers, by the scores that the replay kept of both.

    Raises:
        LsatError: when the replay did not score one of them.
    """
    from lsat_ray.report.reader import RunReader
    from lsat_ray.scoring.served import published
    from lsat_ray.serving.promotion import judge

    current, scores = published(run), RunReader(run).scores
    assert current.candidate is not None
    pair = current.models[0].strategy, current.candidate.strategy
    if missing := [name for name in pair if name not in scores]:
        raise LsatError(f"{run}: no scores of {missing[0]}; the rule reads what the replay scored")
    return judge(scores[pair[0]], scores[pair[1]])


def _check_default(run: Path, name: str) -> None:
    from lsat_ray import config as configs

    path = run / "config.resolved.yaml"
    default = configs.load(path).serve.default if path.is_file() else None
    if default not in (None, name):
        raise LsatError(f"serve.default: {default} answers whatever is promoted; set it to null in {path}")


def _change(run: Path, following: Served) -> None:
    """Check that everything is there, then commit."""
    from lsat_ray.adapters.store import AdapterStore
    from lsat_ray.scoring.served import commit

    store = AdapterStore(run / "adapters")
    for digest in sorted({digest for model in following.all_models for digest in model.adapters}):
        store.load(digest)
    commit(run, following)
    say(following.words())
