"""A folder that is no whole model is refused at once, by the name of what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lsat_ray.backbone.load import base_name, check_folder, locate
from lsat_ray.config import BackboneConfig
from lsat_ray.errors import LsatError


@pytest.fixture
def folder(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny backbone that a test may break."""
    return Path(shutil.copytree(tiny_backbone_folder, tmp_path / "model"))


def test_a_whole_model_is_found(folder: Path) -> None:
    assert locate(BackboneConfig(path=str(folder))) == folder


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("config.json", "no config.json"), ("*.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_a_missing_part_is_named(folder: Path, pattern: str, says: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()
    with pytest.raises(LsatError, match=rf"backbone\.path: .*{says}"):
        locate(BackboneConfig(path=str(folder)))


def test_a_missing_shard_is_named(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    index = {"weight_map": {"a": weights.name, "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LsatError, match=r"1 of 2 weight files are missing \(model-00002"):
        check_folder(folder)
    shutil.copy(weights, folder / "model-00002-of-00002.safetensors")
    assert check_folder(folder) == folder
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(LsatError, match=r"index\.json is broken"):
        check_folder(folder)


def test_a_folder_is_named_by_its_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert base_name(BackboneConfig(path="nano"), Path("model")) == (str(folder), None)
    assert base_name(BackboneConfig(path="model", revision="x"), Path("model")) == (str(folder), None)
