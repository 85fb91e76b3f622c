"""The store: complete or absent, verified when read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from workbench import Workbench, randomise

from lsat_ray.adapters import store as storing
from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import CONFIG, MANIFEST, MEMORY, WEIGHTS, AdapterStore
from lsat_ray.backbone.load import base_name
from lsat_ray.config import BackboneConfig, LoraSettings, PromptConfig, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.scoring.score import score

NAME = "base_model.model.model.layers.0.self_attn.q_proj"


def spec(seed: int = 0) -> AdapterSpec:
    """Return some spec."""
    part = (Slice(1, "train"),)
    return AdapterSpec("b" * 64, "d" * 64, part, part, PromptConfig(), LoraSettings(), Recipe(), seed)


def adapter() -> Adapter:
    """Return some adapter of rank 2."""
    state = {f"{NAME}.lora_A.weight": torch.randn(2, 6), f"{NAME}.lora_B.weight": torch.randn(5, 2)}
    return Adapter(state, 2, 4.0)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """Return a store with one adapter."""
    shop = AdapterStore(tmp_path / "adapters")
    shop.publish(spec(), adapter(), {"auc": 0.7}, "base")
    return shop


def test_what_is_published_comes_back(tmp_path: Path) -> None:
    shop, made = AdapterStore(tmp_path / "deep" / "adapters"), adapter()
    assert spec().digest not in shop
    folder = shop.publish(spec(), made, {"auc": 0.7}, "base")
    read = shop.load(spec().digest)
    assert folder.name == spec().digest
    assert all(torch.equal(read.state[k], v) for k, v in made.state.items())
    assert (read.rank, read.alpha) == (2, 4.0)
    assert shop.manifest(spec().digest)["facts"] == {"auc": 0.7}
    assert shop.digests() == [spec().digest]


def test_what_the_next_link_must_know_is_kept_beside_the_weights(tmp_path: Path) -> None:
    """In a file of its own: PEFT reads weights alone, and a damaged memory is refused as they are."""
    shop, made = AdapterStore(tmp_path), replace(adapter(), memory={NAME: torch.eye(6)[:3], "other": torch.empty(0, 6)})
    folder = shop.publish(spec(), made, {}, "base")
    read = shop.load(spec().digest)
    assert read.memory.keys() == made.memory.keys()
    assert all(torch.equal(v, read.memory[k]) for k, v in made.memory.items())
    assert read.state.keys() == made.state.keys() == shop.load_state(spec().digest).keys()
    (folder / MEMORY).write_bytes(b"torn")
    with pytest.raises(LsatError, match=MEMORY):
        shop.load(spec().digest)


def test_same_adapter_same_bytes(tmp_path: Path) -> None:
    made = adapter()
    folders = [AdapterStore(tmp_path / n).publish(spec(), made, {}, "base") for n in "ab"]
    for name in (WEIGHTS, CONFIG, MANIFEST):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_second_publisher_changes_nothing(store: AdapterStore) -> None:
    before = (store.path(spec().digest) / WEIGHTS).read_bytes()
    store.publish(spec(), adapter(), {}, "base")
    assert (store.path(spec().digest) / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_flipped_byte_is_refused_by_name(store: AdapterStore, name: str, where: float) -> None:
    path = store.path(spec().digest) / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if where >= 0 else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(LsatError, match=rf"{name}.*damaged"):
        store.load(spec().digest)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_torn_or_missing_file_is_refused_by_name(store: AdapterStore, name: str) -> None:
    path = store.path(spec().digest) / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LsatError, match=rf"{name}.*damaged"):
        store.load(spec().digest)
    path.unlink()
    with pytest.raises(LsatError, match=rf"{name}: missing"):
        store.load(spec().digest)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_broken_manifest_is_refused(store: AdapterStore, text: str) -> None:
    (store.path(spec().digest) / MANIFEST).write_text(text)
    with pytest.raises(LsatError, match=r"manifest\.json: not JSON"):
        store.load(spec().digest)


def test_an_adapter_under_anothers_name_is_refused(store: AdapterStore) -> None:
    shutil.copytree(store.path(spec().digest), store.path(spec(1).digest))
    with pytest.raises(LsatError, match="describes adapter"):
        store.load(spec(1).digest)


def test_an_absent_adapter_says_so(store: AdapterStore) -> None:
    with pytest.raises(LsatError, match="no such adapter"):
        store.load("0" * 64)


@pytest.mark.parametrize("moment", ["save_file", "_peft_config", "fsync", "rename"])
def test_a_death_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def die(*_: object, **__: object) -> None:
        raise OSError("the machine went away")

    shop = AdapterStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os if moment in ("fsync", "rename") else storing, moment, die)
        with pytest.raises(OSError, match="went away"):
            shop.publish(spec(), adapter(), {}, "base")
    assert spec().digest not in shop
    assert shop.digests() == []
    shop.publish(spec(), adapter(), {}, "base")
    shop.load(spec().digest)


def test_leftovers_of_a_kill_are_no_adapters(store: AdapterStore) -> None:
    torn = store.root / f".{spec(2).digest}.abc"
    torn.mkdir()
    (torn / MANIFEST).write_text("{}")
    assert store.digests() == [spec().digest]
    assert spec(2).digest not in store


def test_the_config_is_pefts(store: AdapterStore) -> None:
    tree = json.loads((store.path(spec().digest) / CONFIG).read_text())
    assert (tree["peft_type"], tree["r"], tree["lora_alpha"]) == ("LORA", 2, 4.0)


def test_a_folder_without_a_manifest_is_replaced(store: AdapterStore) -> None:
    (store.path(spec().digest) / MANIFEST).unlink()
    assert spec().digest not in store
    store.publish(spec(), adapter(), {}, "base")
    store.load(spec().digest)
    assert [p.name for p in store.root.iterdir()] == [spec().digest]


def test_usable_reads_what_membership_does_not(store: AdapterStore) -> None:
    digest = spec().digest
    assert store.usable(digest)
    assert not store.usable("0" * 64)
    path = store.path(digest) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    assert digest in store and not store.usable(digest)
    (store.path(digest) / MANIFEST).write_text("[]")
    assert not store.usable(digest)


def test_a_damaged_adapter_is_put_aside_and_can_be_published_again(store: AdapterStore) -> None:
    digest = spec().digest
    for _ in range(2):  # a second time too: what was put aside before gives way
        path = store.path(digest) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])
        line = store.quarantine(digest)
        assert digest in line and "\n" not in line
        assert digest not in store and store.digests() == []
        assert (store.root / f".damaged-{digest}" / WEIGHTS).is_file()
        store.publish(spec(), adapter(), {}, "base")
        assert store.usable(digest)
    assert "no such adapter" in store.quarantine("0" * 64)


def test_peft_opens_an_adapter_with_its_backbone(tiny_backbone_folder: Path, bench: Workbench, tmp_path: Path) -> None:
    """The folder alone is enough: PEFT finds the backbone by the name in it, and both give the same logits."""
    from peft import AutoPeftModelForCausalLM

    randomise(bench.model)
    made = bench.model.snapshot()
    base, revision = base_name(bench.experiment.backbone, tiny_backbone_folder)
    shop = AdapterStore(tmp_path / "adapters")
    folder = shop.publish(bench.spec(), made, {}, base, revision=revision)
    opened = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert Path(opened.get_base_model().config._name_or_path) == tiny_backbone_folder
    encoded = bench.validation
    ids = [*encoded.prefix.tolist(), *encoded.tokens[: encoded.offsets[1]].tolist()]
    logits = opened(input_ids=torch.tensor([ids])).logits[0, -1]
    answers = bench.backbone.answers
    ours = score(bench.model, made, encoded)[0]
    assert float(logits[answers.yes] - logits[answers.no]) == pytest.approx(float(ours), abs=1e-4)


def test_an_adapter_on_a_hub_backbone_names_its_commit(tmp_path: Path) -> None:
    config = BackboneConfig(path="owner/model", revision="main")
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("c" * 40)
    assert base_name(config, snapshot) == ("owner/model", "c" * 40)
    assert base_name(config, tmp_path) == ("owner/model", "main")
    base, revision = base_name(config, snapshot)
    folder = AdapterStore(tmp_path).publish(spec(), adapter(), {}, base, revision=revision)
    tree = json.loads((folder / CONFIG).read_text())
    assert (tree["base_model_name_or_path"], tree["revision"]) == ("owner/model", "c" * 40)


def test_a_flipped_bit_anywhere_in_the_manifest_is_seen(store: AdapterStore) -> None:
    """The manifest named every file's digest but not its own: facts and spec could change unseen."""
    path = store.path(spec().digest) / MANIFEST
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        assert not store.usable(spec().digest), place
    path.write_bytes(whole)
    assert store.usable(spec().digest)


def test_a_manifest_of_an_earlier_version_has_no_digest_of_its_own_and_is_read(store: AdapterStore) -> None:
    path = store.path(spec().digest) / MANIFEST
    tree = json.loads(path.read_text())
    del tree["check"]
    path.write_text(json.dumps(tree, indent=2, sort_keys=True))
    assert store.usable(spec().digest)
