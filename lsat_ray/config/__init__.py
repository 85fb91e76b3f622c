"""One frozen, typed tree for an experiment: YAML in, resolved YAML out."""

from lsat_ray.config.data import AmazonConfig, DataConfig, PeriodsConfig, SyntheticConfig
from lsat_ray.config.experiment import DEFAULT_STRATEGIES, Experiment, load
from lsat_ray.config.model import (
    BackboneConfig,
    ClassicalRecipe,
    GateConfig,
    GenerativeConfig,
    LoraSettings,
    NanoConfig,
    PesoConfig,
    PromptConfig,
    Recipe,
    RecloraConfig,
    RetrieverConfig,
)
from lsat_ray.config.node import Node
from lsat_ray.config.running import EngineConfig, ReplayConfig, SearchConfig, ServeConfig, StudyConfig

__all__ = [
    "DEFAULT_STRATEGIES",
    "AmazonConfig",
    "BackboneConfig",
    "ClassicalRecipe",
    "DataConfig",
    "EngineConfig",
    "Experiment",
    "GateConfig",
    "GenerativeConfig",
    "LoraSettings",
    "NanoConfig",
    "Node",
    "PeriodsConfig",
    "PesoConfig",
    "PromptConfig",
    "Recipe",
    "RecloraConfig",
    "ReplayConfig",
    "RetrieverConfig",
    "SearchConfig",
    "ServeConfig",
    "StudyConfig",
    "SyntheticConfig",
    "load",
]
