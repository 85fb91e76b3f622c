"""The whole experiment: YAML in, resolved YAML out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from lsat_ray.config.data import DataConfig, PeriodsConfig
from lsat_ray.config.model import (
    BackboneConfig,
    ClassicalRecipe,
    GenerativeConfig,
    LoraSettings,
    PesoConfig,
    PromptConfig,
    Recipe,
    RecloraConfig,
)
from lsat_ray.config.node import Node
from lsat_ray.config.running import EngineConfig, ReplayConfig, SearchConfig, ServeConfig, StudyConfig
from lsat_ray.errors import LsatError

DEFAULT_STRATEGIES = (
    "full-retraining",
    "fine-tuning",
    "short-term",
    "long-term",
    "lsat-en",
    "lsat-en-full",
    "lsat-ta",
    "hedge",
)


class Experiment(Node):
    """One experiment."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder under the runs directory."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of the adapters."""
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    """Update strategies that are compared (`strategies/__init__.py`)."""
    data: DataConfig = DataConfig()
    periods: PeriodsConfig = PeriodsConfig()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    lora: LoraSettings = LoraSettings()
    recipe: Recipe = Recipe()
    baselines: ClassicalRecipe = ClassicalRecipe()
    engine: EngineConfig = EngineConfig()
    search: SearchConfig = SearchConfig()
    serve: ServeConfig = ServeConfig()
    replay: ReplayConfig = ReplayConfig()
    study: StudyConfig = StudyConfig()
    peso: PesoConfig = PesoConfig()
    generative: GenerativeConfig = GenerativeConfig()
    reclora: RecloraConfig = RecloraConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.data.format != "synthetic" and not self.data.path:
            raise ValueError(f"data.path: missing; format {self.data.format!r} reads a log, say where it lies")
        periods = len(self.periods.dates) - 1 if self.periods.cut == "dates" else self.periods.number
        if self.first_test > periods:
            raise ValueError(
                f"replay.first_test: {self.first_test} is past the last period {periods}; "
                "lower replay.long_periods or replay.first_test, or cut more periods"
            )
        return self

    @model_validator(mode="after")
    def _language_is_exact(self) -> Experiment:
        if self.recipe.loss == "language" and self.prompt.layout != "exact":
            raise ValueError(
                f"recipe.loss: language is a loss of one prompt; prompt.layout is {self.prompt.layout}, set it to exact"
            )
        return self

    @model_validator(mode="after")
    def _serve_gpus_follow(self) -> Experiment:
        if "gpus" not in self.serve.model_fields_set and self.serve.gpus != self.engine.gpus:
            object.__setattr__(self, "serve", self.serve.model_copy(update={"gpus": self.engine.gpus}))
        return self

    @property
    def first_test(self) -> int:
        """First period (1-based) that is tested on."""
        return self.replay.first_test or self.replay.long_periods + 1

    def to_yaml(self) -> str:
        """Return the resolved tree as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), name: str | None = None) -> Experiment:
    """Read one experiment.

    Args:
        path: YAML file, or None for the embedded default.
        overrides: `section.key=value` pairs, the value in YAML syntax.
        name: replaces the experiment's name; without either it is the file's stem.

    Raises:
        LsatError: naming file, key and remedy.
    """
    source = str(path) if path else "defaults"
    tree: dict[str, Any] = {}
    if path:
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError as error:
            raise LsatError(f"{path}: no such config; shipped ones lie in jobs/configs/") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LsatError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise LsatError(f"{path}: expected `key: value` sections at the top, found {type(loaded).__name__}")
        tree = loaded or {}
        tree.setdefault("name", Path(path).stem)
    for override in overrides:
        _override(tree, override)
    if name:
        tree["name"] = name
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [f"{_source(e, source, overrides)}: {_explain(e)}" for e in error.errors()]
        raise LsatError("; ".join(lines)) from error


def _source(error: Any, source: str, overrides: Sequence[str]) -> str:
    """Return `--set key=value` where an override is at fault, else the file."""
    place = ".".join(map(str, error["loc"]))
    for override in reversed(overrides):
        key = override.partition("=")[0].strip()
        related = f"{place}.".startswith(f"{key}.") or f"{key}.".startswith(f"{place}.")
        if related if place else key in error["msg"]:
            return f"--set {override}"
    return source


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise LsatError(f"--set {override}: expected section.key=value, as in --set recipe.lr=0.001")
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise LsatError(f"--set {override}: `{parent}` is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LsatError(f"--set {override}: the value is not YAML; quote it") from error


def _explain(error: Any) -> str:
    """Turn one pydantic error into `key: what; remedy`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model: Any = Experiment
        for part in error["loc"][:-1]:
            model = model.model_fields[part].annotation
        known = list(model.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return f"key `{key}` is unknown; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if not key else f" (given {error.get('input')!r})"
    return f"key `{key}`: {message}{given}" if key else message
