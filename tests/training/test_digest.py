"""A digest names everything that changes an adapter: any field of the config changes the digest, or not the weights."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from test_engines import difference

from lsat_ray import data
from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import fingerprint, load
from lsat_ray.config import (
    BackboneConfig,
    DataConfig,
    EngineConfig,
    Experiment,
    LoraSettings,
    PeriodsConfig,
    PromptConfig,
)
from lsat_ray.data.periods import Periods, cut
from lsat_ray.prompts.encode import Encoder
from lsat_ray.strategies.base import Setting, full_retraining
from lsat_ray.strategies.cumulative import CUMULATIVE
from lsat_ray.training.fit import TorchEngine, fit

CHANGES: dict[str, Any] = {
    "name": "other",
    "seeds": [3],
    "strategies": ["short-term"],
    "data.path": "elsewhere",
    "serve.default": "lsat-en",
    "serve.catalogue": "titles.txt",
    "peso.lambdas": [1.0, 2.0],
    "generative.reference": "pretrain",
    "generative.beams": [12, 40],
    "data.metadata": "elsewhere",
    "data.end": 2 * 10**9,
    "data.keep_last": 200,
    "data.start": 3,
    "periods.cut": "time",
    "periods.dates": ["2020-01-01", "2021-01-01"],
    "backbone.revision": "main",
    "backbone.attention": "eager",
    "backbone.nano.hidden": 40,
    "backbone.nano.heads": 2,
    "prompt.item_word": "book",
    "lora.targets": ["q_proj"],
    "search.grid": [0.0, 0.5, 1.0],
    "serve.host": "0.0.0.0",
    "serve.token_env": "TOKEN",
    "study.paper": "ml-1m",
    "study.lags": [2],
    "study.against": "full-retraining",
    "replay.long_periods": 3,
}
"""Values for the fields whose type does not suggest one."""

ELSEWHERE = {
    "data.format": "another reader reads another log, whose fingerprint is in the digest: tests/data",
    "backbone.path": "another folder with the same files is the same backbone: its fingerprint is of the files",
    "backbone.device": "another device rounds differently; there may be only one here",
    "backbone.quantization": "bitsandbytes needs a GPU; it is part of the fingerprint",
    "engine.kind": "DeepSpeed needs processes of its own: test_engines",
    "engine.zero": "DeepSpeed needs processes of its own: tests/distributed/test_extras_parity",
    "engine.workers": "several workers need processes of their own: test_engines",
}
"""Fields that are not changed here, and why."""


def leaves(node: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the dotted names of all fields below a section."""
    for name, field in node.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def other(annotation: Any, value: Any, name: str) -> Any:
    """Return another value of a field's type."""
    if name in CHANGES:
        return CHANGES[name]
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            return next(choice for choice in get_args(kind) if choice != value)
        if kind is bool:
            return not value
        if kind is int:
            return 3 if value is None else value + 1
        if kind is float:
            return 0.5 if not value else 0.75 * value
    raise AssertionError(f"{name}: say in CHANGES what else it can be")


def changed(config: Experiment, name: str) -> Experiment:
    """Return the config with one field changed."""
    tree = config.model_dump()
    *path, leaf = name.split(".")
    node, section = tree, Experiment
    for part in path:
        node, section = node[part], section.model_fields[part].annotation  # type: ignore[assignment]
    node[leaf] = other(section.model_fields[leaf].annotation, node[leaf], name)
    return Experiment.model_validate(tree)


@pytest.fixture(scope="module")
def base(tiny_experiment: Experiment) -> Experiment:
    """Return the tiny config with dropout, warm-up and a short recipe."""
    sections = {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.2},
        "recipe": {"lr": 1e-3, "batch_size": 24, "epochs": 1, "warmup": 2},
        "engine": {"kind": "torch", "workers": 1},
    }
    return Experiment.model_validate(tiny_experiment.model_dump() | sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digest")


class Read(NamedTuple):
    """The sections that a worker reads when it fits an adapter."""

    data: DataConfig
    periods: PeriodsConfig
    backbone: BackboneConfig
    prompt: PromptConfig
    lora: LoraSettings
    engine: EngineConfig


def read(config: Experiment) -> Read:
    """Return them."""
    return Read(*(getattr(config, name) for name in Read._fields))


@cache
def log_of(settings: DataConfig, periods: PeriodsConfig) -> Periods:
    """Return the periods of a config's log."""
    return cut(data.load(settings), settings, periods)


def backbone_of(of: Read, root: Path) -> Path:
    """Return the folder of the nano backbone."""
    return nano.build(log_of(of.data, of.periods), of.backbone.nano, of.prompt, root)


def specs(config: Experiment, backbone: str) -> dict[str, AdapterSpec]:
    """Return a plain adapter, and a link of a chain whose A is designed from the data."""
    log = log_of(config.data, config.periods)
    setting = Setting(backbone, log.fingerprint, config, config.seeds[0], tuple(range(log.count)))
    return {"plain": full_retraining(setting, 1), "link": CUMULATIVE["inf-lora"](setting).spec(2)}


@cache
def weights(of: Read, spec: AdapterSpec, root: Path) -> dict[str, torch.Tensor]:
    """Fit an adapter, and what it needs, as a worker does."""
    torch.set_num_threads(of.engine.threads)
    log, backbone = log_of(of.data, of.periods), load(of.backbone, backbone_of(of, root))
    model = AdaptedBackbone(backbone, of.lora, of.engine.checkpointing, of.engine.packing)
    encoder = Encoder(backbone.tokenizer, of.prompt, log.titles)

    def fitted(one: AdapterSpec) -> Adapter:
        train, validation = (encoder(log.select(part)) for part in (one.train, one.validation))
        frozen = [fitted(f) for f in one.frozen.adapters] if one.frozen else []
        return fit(one, model, train, validation, TorchEngine(), of.engine, frozen=frozen).adapter

    found = fitted(spec).state
    torch.set_num_threads(1)
    return found


@pytest.mark.parametrize("name", [n for n in leaves(Experiment) if n not in ELSEWHERE])
def test_a_field_changes_the_digest_or_not_the_adapter(name: str, base: Experiment, folder: Path) -> None:
    config = changed(base, name)
    own = fingerprint(backbone_of(read(base), folder), base.backbone)
    before, after = specs(base, own), specs(config, own)
    if before == after:
        after = specs(config, fingerprint(backbone_of(read(config), folder), config.backbone))
    for kind, spec in before.items():
        if spec == after[kind]:
            found = weights(read(config), spec, folder)
            assert difference(weights(read(base), spec, folder), found) <= 1e-5, kind


def test_what_is_left_out_is_still_there() -> None:
    assert set(ELSEWHERE) | set(CHANGES) <= set(leaves(Experiment))
    assert not set(ELSEWHERE) & set(CHANGES)
