"""Run a study for several values of one setting and set the results side by side.

    python jobs/sweep.py --config jobs/configs/drift_synthetic.yaml --vary "data.synthetic.drift=[0.0, 0.6, 1.2, 2.4]"

Drift, half-life, rank, adapted modules, the size of m and the length of a period are all questions of this form.
Several `--vary` change together, value by value. The same command resumes; values that were run before are reused.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs._common import ConfigOption, NameOption, RunsOption, SetOption, backend, one_clear_error, runs_dir, say
from lsat_ray import config as configs
from lsat_ray.errors import LsatError
from lsat_ray.report.sweep import check


def parse(vary: list[str]) -> tuple[str, dict[str, tuple[Any, list[str]]]]:
    """Return the first setting, and by a name of each of its values that value and the overrides that go with it.

    Raises:
        LsatError: when one is not `section.key=[value, ...]`, or they are not equally long.
    """
    columns: list[tuple[str, list[Any]]] = []
    for text in vary:
        key, equals, values = text.partition("=")
        try:
            found = yaml.safe_load(values)
        except yaml.YAMLError:
            found = None
        if not equals or not isinstance(found, list) or not found:
            raise LsatError(f"--vary {text}: expected section.key=[value, value], as in --vary lora.rank=[2, 8]")
        columns.append((key.strip(), found))
    if len({len(values) for _, values in columns}) > 1:
        raise LsatError(f"--vary {' '.join(vary)}: settings that change together need equally many values")
    steps = {}
    for at, value in enumerate(columns[0][1]):
        name = ".".join(map(str, value)) if isinstance(value, list) else str(value)
        overrides = [f"{key}={json.dumps(values[at])}" for key, values in columns]
        steps[name] = (value if isinstance(value, int | float) else name, overrides)
    return columns[0][0], steps


def _say_of(label: str, text: str) -> None:
    say(f"{label}: {text}")


def main(
    vary: Annotated[list[str], typer.Option("--vary", help="section.key=[value, ...]; several change together.")],
    config: ConfigOption = None,
    name: NameOption = None,
    runs: RunsOption = None,
    set_: SetOption = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Row to compare with; may be repeated.")
    ] = None,
) -> None:
    """Run the study of a config for every value of a setting."""
    with one_clear_error():
        key, steps = parse(vary)
        check([value for value, _ in steps.values()], against or [])
        folder = runs_dir(runs) / configs.load(config, set_ or [], name).name
        experiments = {
            label: configs.load(config, [*(set_ or []), *overrides], f"{key}-{label}")
            for label, (_, overrides) in steps.items()
        }
        from lsat_ray.runs.check import check as checked
        from lsat_ray.runs.study import study

        logs = {label: checked(e) for label, e in experiments.items()}
        done = {
            label: study(e, folder, backend(e), partial(_say_of, label), logs[label])
            for label, e in experiments.items()
        }
        from lsat_ray.report import sweep
        from lsat_ray.report.folder import RunFolder

        found = {steps[label][0]: RunFolder(path) for label, path in done.items()}
        rows = sweep.table(found, against or ["full-retraining"])
        sweep.write(rows, key, folder)
        shown = rows[["value", "against", "strategy", "mean_auc", "verdict"]].round(4)
        print(shown.to_string(index=False))
        say(f"table and figures in {folder}")


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
