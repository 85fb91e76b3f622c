"""A run's folder: refused early where it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.runs.folder import RunFolder

CONFIG = Experiment(name="run")


def test_a_folder_that_can_be_written_is_not_created_by_the_check(tmp_path: Path) -> None:
    RunFolder(tmp_path / "not" / "there", CONFIG).check()
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(LsatError, match=r"cannot be written .*Not a directory.*--runs-dir"):
            RunFolder(root, CONFIG).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_runs_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LsatError, match="cannot be written"):
            RunFolder(tmp_path / "runs", CONFIG).check()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("address", ["s3://bucket/runs", "gs://bucket", "hdfs://host:9000/runs"])
def test_an_address_is_refused_and_no_folder_of_that_name_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LsatError, match="an address"):
        RunFolder(Path(address), CONFIG).open()
    assert list(tmp_path.iterdir()) == []


def test_another_config_and_another_process_are_refused(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, CONFIG)
    first.open()
    try:
        with pytest.raises(LsatError, match="another process"):
            RunFolder(tmp_path, CONFIG).open()
        other = Experiment.model_validate({"name": "run", "recipe": {"epochs": 7}})
        with pytest.raises(LsatError, match="`recipe` differs"):
            RunFolder(tmp_path, other).check()
    finally:
        first.close()
    again = RunFolder(tmp_path, CONFIG)
    again.open()
    again.close()
