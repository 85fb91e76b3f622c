"""A process of the cluster is killed or hangs: the run goes on by itself and ends as one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kills import KILLS, face, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all runs, with the undisturbed one."""
    root = tmp_path_factory.mktemp("runs")
    undisturbed(root)
    return root


@pytest.mark.parametrize("name", KILLS)
def test_a_process_that_dies_or_hangs_costs_time_and_nothing_else(whole: Path, name: str) -> None:
    """The run ended with up to 750 lines of traceback, or waited for ever."""
    found = face(whole, KILLS[name])
    assert found.outcome == "identical", (whole / f"{name}.log").read_text()[-3000:]
