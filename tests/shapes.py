"""Shipped configs on real models, and those models' shapes without weights: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lsat_ray.config import Experiment, load

CONFIGS = Path(__file__).resolve().parents[1] / "jobs" / "configs"


def shipped(name: str, monkeypatch: pytest.MonkeyPatch, *sets: str) -> Experiment:
    """Return a shipped config; its log need not be there."""
    for variable in ("ML1M", "AMAZON"):
        monkeypatch.setenv(variable, "/logs")
    return load(CONFIGS / f"{name}.yaml", list(sets))


def shape(name: str) -> Any:
    """Return a backbone without weights, of the shape that its config.json names."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    shapes = {
        "llama7b": LlamaConfig(),  # its defaults are LLaMA-7B's
        "qwen3_0.6b": Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
        ),
    }  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shapes[name], dtype=torch.bfloat16)
