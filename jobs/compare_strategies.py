"""Compare update strategies on a finished log: Table 2 and Figures 2 to 5 of the LSAT paper, with statistics.

    python jobs/compare_strategies.py --config jobs/configs/study_synthetic.yaml

Trains every distinct adapter once, as many at a time as there are sessions. The same command resumes; `--seeds 3`
reuses what exists.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs._common import (
    ConfigOption,
    NameOption,
    RunsOption,
    SetOption,
    backend,
    one_clear_error,
    print_table,
    runs_dir,
    say,
)
from lsat_ray import config as configs


def main(
    config: ConfigOption = None,
    name: NameOption = None,
    runs: RunsOption = None,
    set_: SetOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Run seeds 0 to N - 1.")] = None,
) -> None:
    """Run the study of a config."""
    with one_clear_error():
        overrides = [*(set_ or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
        experiment = configs.load(config, overrides, name)
        from lsat_ray.runs.study import study

        folder = study(experiment, runs_dir(runs), backend(experiment), say)
        print_table(folder)
        say(f"table in {folder / 'table2.csv'}, trainings in {folder / 'trainings.csv'}")
        say(f"report in {folder / 'report.html'}")


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
