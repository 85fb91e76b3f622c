"""Where the weights lie on a machine that is not the driver's."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from lsat_ray.backbone.load import on_this_machine
from lsat_ray.config import BackboneConfig
from lsat_ray.errors import LsatError


def test_a_hub_model_is_found_again_at_the_drivers_commit(
    tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path on the head was sent to workers that did not have it."""
    asked = []

    def snapshot(name: str, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(tiny_backbone_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    config = BackboneConfig(path="maker/model", revision="main")
    on_head = tmp_path / "models--maker--model" / "snapshots" / "0123abcd"
    assert on_this_machine(config, on_head) == tiny_backbone_folder
    assert asked == [("maker/model", "0123abcd")]
    on_head.mkdir(parents=True)
    assert on_this_machine(config, on_head) == on_head


@pytest.mark.parametrize("path", ["nano", "/models/mine"])
def test_a_folder_that_this_machine_does_not_see_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(LsatError, match=r"backbone\.path: .* does not see .*gone; runs and models must lie on storage"):
        on_this_machine(BackboneConfig(path=path), tmp_path / "gone")
