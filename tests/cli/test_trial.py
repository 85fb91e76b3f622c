"""`lsat-ray trial`: what a run serves is tried, promoted by a rule, and rolled back, from the run's folder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from lsat_ray.cli.app import app
from lsat_ray.files import write_atomic
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served, commit, published

FIRST, OTHER = Model("plain", 3, "frozen"), Model("other", 3, "frozen", seed=0)
OLD = Model("plain", 2, "frozen")


def trial(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["trial", *map(str, words)])
    return done.exit_code, done.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that scored `other` better than `plain` on periods 3 and 4."""
    rng = np.random.default_rng(0)
    for period in (3, 4):
        user, label = rng.integers(0, 60, 800), rng.integers(0, 2, 800)
        for name, skill in (("plain", 0.0), ("other", 0.8)):
            score = 1 / (1 + np.exp(-(skill * (2 * label - 1) + rng.normal(0, 1, 800))))
            frame = pd.DataFrame({"row": np.arange(800), "user": user, "label": label, "score": score})
            write_atomic(tmp_path / "scores" / name / "seed0" / f"period{period:02d}.parquet", frame)
    commit(tmp_path, Served(2, (OLD,)))
    commit(tmp_path, Served(3, (FIRST, OTHER)))
    return tmp_path


def test_a_better_model_goes_from_shadow_to_canary_to_everybody_and_back(run: Path) -> None:
    assert trial("shadow", run, "other")[0] == 0
    assert published(run) == Served(3, (FIRST, OTHER), OTHER)
    code, said = trial("canary", run, 0.25)
    assert code == 0 and "candidate other of period 3 to 25% of the users" in said
    code, said = trial("promote", run, "--if-better")
    assert code == 0 and "better: prequential log-loss lower by" in said and "2 tested periods, 60 users" in said
    assert published(run) == Served(3, (OTHER, FIRST))
    assert trial("rollback", run, 2)[0] == 0
    assert published(run) == Served(2, (OLD,))


def test_a_model_that_is_not_better_stays_on_trial(run: Path) -> None:
    commit(run, Served(3, (OTHER, FIRST), FIRST))
    code, said = trial("promote", run, "--if-better")
    assert code == 1 and "worse: " in said and "not promoted; the trial goes on" in said
    assert published(run) == Served(3, (OTHER, FIRST), FIRST)
    assert trial("withdraw", run)[0] == 0
    assert published(run) == Served(3, (OTHER, FIRST))


def test_what_cannot_be_done_is_one_line_and_changes_nothing(run: Path) -> None:
    before = published(run)
    for words, says in (
        (("shadow", run, "nope"), "'nope' is not served; served are plain, other"),
        (("promote", run), "no model is on trial"),
        (("withdraw", run), "no model is on trial"),
        (("rollback", run, 9), "nothing of period 9 was served; there are periods 2, 3"),
        (("canary", run / "nowhere", 0.1), "nothing was published"),
    ):
        code, said = trial(*words)
        assert code == 2 and says in said, said
    lost = Model("lost", 3, "single", ("0" * 64,), (1.0,))
    commit(run, Served(2, (OLD, lost)))
    commit(run, before)
    code, said = trial("rollback", run, 2)
    assert code == 2 and "no such adapter" in said
    commit(run, Served(3, (FIRST, OTHER), lost))
    code, said = trial("promote", run, "--if-better")
    assert code == 2 and "no scores of lost" in said
    (run / "config.resolved.yaml").write_text("serve: {default: plain}\n")
    commit(run, Served(3, (FIRST, OTHER), OTHER))
    code, said = trial("promote", run)
    assert code == 2 and "serve.default: plain answers whatever is promoted" in said
