"""A run's folder: refused early where it cannot be used."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.runs.folder import RunFolder, versions

ROOT = Path(__file__).resolve().parents[2]
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
        for call in (RunFolder.check, RunFolder.open):  # the check: before a port is waited for that the other holds
            with pytest.raises(LsatError, match="another process"):
                call(RunFolder(tmp_path, CONFIG))
        other = Experiment.model_validate({"name": "run", "recipe": {"epochs": 7}})
        with pytest.raises(LsatError, match="`recipe` differs"):
            RunFolder(tmp_path, other).check()
    finally:
        first.close()
    again = RunFolder(tmp_path, CONFIG)
    again.open()
    again.close()


def test_a_run_from_before_the_rule_of_choice_goes_on_by_auc_alone(tmp_path: Path) -> None:
    """Its weights were chosen by AUC: under the default of today the rest would be chosen otherwise, unseen."""
    auc = Experiment.model_validate({"name": "run", "search": {"select": "auc"}})
    folder = RunFolder(tmp_path, auc)
    folder.open()
    folder.close()
    resolved = folder.path / "config.resolved.yaml"
    tree = yaml.safe_load(resolved.read_text())
    del tree["search"]["select"]
    resolved.write_text(yaml.safe_dump(tree))
    with pytest.raises(LsatError, match="`search` differs"):
        RunFolder(tmp_path, CONFIG).check()
    RunFolder(tmp_path, auc).check()


def test_a_run_of_an_older_version_lacks_the_keys_that_came_since_and_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    folder.open()
    folder.close()
    resolved = folder.path / "config.resolved.yaml"
    tree = yaml.safe_load(resolved.read_text())
    del tree["reclora"], tree["recipe"]["patience"]
    resolved.write_text(yaml.safe_dump(tree))
    RunFolder(tmp_path, CONFIG).check()
    tree["recipe"]["gone"] = 1
    resolved.write_text(yaml.safe_dump(tree))
    with pytest.raises(LsatError, match="`recipe` differs"):
        RunFolder(tmp_path, CONFIG).check()


def test_versions_name_the_commit_of_a_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(versions()["commit"].removesuffix("+changes"))
