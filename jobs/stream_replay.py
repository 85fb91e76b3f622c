"""Replay a stream: train, search, serve and measure every strategy period by period.

    python jobs/stream_replay.py --config jobs/configs/synthetic.yaml
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/stream_replay.py --config ...

The same command resumes where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

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


def main(config: ConfigOption = None, name: NameOption = None, runs: RunsOption = None, set_: SetOption = None) -> None:
    """Replay the stream of a config."""
    with one_clear_error():
        experiment = configs.load(config, set_ or [], name)
        from lsat_ray.runs.replay import replay

        folder = replay(experiment, runs_dir(runs), backend(experiment), say)
        print_table(folder)
        say(f"results in {folder}, report in {folder / 'report.html'}")


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
