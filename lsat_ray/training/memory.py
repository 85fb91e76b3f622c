"""Memory that training needs under each ZeRO stage, and the stage that `engine.zero: auto` chooses."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.backbone import attention
from lsat_ray.config import EngineConfig, PromptConfig, Recipe
from lsat_ray.prompts.batch import Batch

ROOM = 0.9
"""Share of a worker's memory that the estimate may fill."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that one worker needs in a training step."""

    frozen: int
    """Weights of the backbone (a shard of them under ZeRO-3, and one whole layer)."""
    trained: int
    """Adapter weights, gradients and AdamW's moments, in float32."""
    activations: int
    """What the backward pass keeps of one micro-batch, prompts taken at their longest."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.activations


def estimate(
    model: AdaptedBackbone, engine: EngineConfig, recipe: Recipe, prompt: PromptConfig, stage: int
) -> Estimate:
    """Return what a worker needs under a ZeRO stage (ZeRO, arXiv 1910.02054, section 3).

    LoRA leaves little to divide: stages 1 and 2 split the moments and gradients of the adapter alone; only stage 3
    splits the frozen weights.

    Args:
        model: the backbone with its training slot.
        engine: workers, micro-batches and activation checkpointing.
        recipe: the global batch.
        prompt: the longest prompt.
        stage: 0 to 3.
    """
    world = engine.workers
    slot = {id(p) for p in model.slot_parameters().values()}
    adapter = sum(p.numel() for p in model.slot_parameters().values())
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in slot)
    config = model.peft.get_base_model().config
    layers = config.num_hidden_layers
    if stage == 3:
        frozen = frozen // world + frozen // layers
    weights, gradients, moments = 4 * adapter, 4 * adapter, 8 * adapter
    if stage >= 1:
        moments //= world
    if stage >= 2:
        gradients //= world
    if stage >= 3:
        weights //= world
    width = next(p for p in model.parameters() if id(p) not in slot).element_size()
    tokens = -(-recipe.batch_size // (world * engine.micro_batches)) * prompt.max_tokens
    # A layer keeps the inputs of its norms, projections, attention and gated MLP, and on a CPU its attention weights.
    layer = (
        tokens * width * (10 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size))
    )
    if (model.device.type if model.device.type != "meta" else "cuda" if engine.gpus else "cpu") in attention.KEEPING:
        layer += min(attention.KEPT, tokens * width * prompt.max_tokens * config.num_attention_heads)
    kept = layers * tokens * width * config.hidden_size + layer if engine.checkpointing else layers * layer
    return Estimate(frozen, weights + gradients + moments, kept)


def kept(model: AdaptedBackbone, batch: Batch) -> int:
    """Return the bytes that the backward pass of a batch keeps, weights apart: the truth that is estimated."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []  # so that no storage is freed and its address taken again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(batch)
    return sum(sizes.values())


def available(device: torch.device, engine: EngineConfig) -> int:
    """Return the bytes that a worker may use: its GPU's, or its share of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // (engine.workers * engine.sessions)


def choose(
    model: AdaptedBackbone, engine: EngineConfig, recipe: Recipe, prompt: PromptConfig, memory: int
) -> tuple[int, str]:
    """Return the lowest ZeRO stage whose estimate fits, and why, as one line.

    Args:
        model: the backbone with its training slot.
        engine: workers, micro-batches and activation checkpointing.
        recipe: the global batch.
        prompt: the longest prompt.
        memory: bytes of a worker (`available`).
    """
    needs = [estimate(model, engine, recipe, prompt, stage) for stage in range(4)]
    fits = [stage for stage, need in enumerate(needs) if need.total <= ROOM * memory]
    stage = fits[0] if fits else 3
    need = needs[stage]
    parts = f"weights {_gib(need.frozen)}, adapter {_gib(need.trained)}, activations {_gib(need.activations)}"
    words = f"ZeRO stage {stage}: a worker needs about {_gib(need.total)} ({parts}) of {_gib(memory)}"
    if not fits:
        words += "; that may not fit: raise engine.micro_batches or set engine.checkpointing"
    elif stage:
        words += f"; stage {stage - 1} would need {_gib(needs[stage - 1].total)}"
    return stage, words


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
