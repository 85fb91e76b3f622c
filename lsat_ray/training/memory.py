"""Memory that training needs under each ZeRO stage, the stage of `engine.zero: auto`, and the memory of a replica."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.backbone import attention, reordered
from lsat_ray.backbone.forward import PIECE
from lsat_ray.backbone.load import Backbone, outline, pick_device
from lsat_ray.config import BackboneConfig, EngineConfig, Experiment, LoraSettings, PromptConfig, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.prompts.answer import AnswerTokens
from lsat_ray.prompts.batch import Batch

ROOM = 0.9
"""Share of a worker's memory that the estimate may fill."""
MODELS = 4
"""Adapters that a replica holds: two of an ensemble, and the two that replace them."""
FEWEST_TOKENS = 512
"""A pass of fewer tokens is not proposed."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that one worker needs in a training step."""

    frozen: int
    """Weights of the backbone, with their copies in the kernel's order (`backbone/reordered.py`); under ZeRO-3 a shard
    of them, from loading on, and the layer whose turn it is."""
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
    sizes = [p.numel() * p.element_size() for p in model.parameters() if id(p) not in slot]
    frozen = sum(sizes)
    config = model.peft.get_base_model().config
    layers = config.num_hidden_layers
    if stage == 3:
        frozen = frozen // world + max(frozen // layers, *sizes)  # the embedding may be larger than a layer
    first = next(p for p in model.parameters() if id(p) not in slot)
    cpu = (model.device.type if model.device.type != "meta" else "cuda" if engine.gpus else "cpu") == "cpu"
    if cpu and first.dtype == torch.bfloat16 and stage < 3:
        frozen += min(2 * frozen, reordered.HELD)
    weights, gradients, moments = 4 * adapter, 4 * adapter, 8 * adapter
    if stage >= 1:
        moments //= world
    if stage >= 2:
        gradients //= world
    if stage >= 3:
        weights //= world
    width = first.element_size()
    tokens = -(-recipe.batch_size // (world * engine.micro_batches)) * prompt.max_tokens
    layer = _layer(config, tokens * width)  # and on a CPU its attention weights
    if cpu:
        layer += min(attention.KEPT, tokens * width * prompt.max_tokens * config.num_attention_heads)
    kept = layers * tokens * width * config.hidden_size + layer if engine.checkpointing else layers * layer
    if recipe.loss == "language":  # logits of a piece, their softmax and their gradient
        kept += 3 * 4 * min(tokens, PIECE) * config.vocab_size
    return Estimate(frozen, weights + gradients + moments, kept)


def _layer(config: Any, size: int) -> int:
    """Return the bytes of a layer's inputs of norms, projections, attention and gated MLP.

    Args:
        config: of the backbone.
        size: bytes of one number for each token.
    """
    return int(size * (10 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)))


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
    """Return the bytes that a worker may use: its share of its GPU (`engine.gpus`), or of the host."""
    if device.type == "cuda":
        return int(size_of(device) * min(1.0, engine.gpus or 1.0))
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // (engine.workers * engine.sessions)


def size_of(device: torch.device) -> int:
    """Return the bytes of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


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


def dressed(model: Any, lora: LoraSettings) -> AdaptedBackbone:
    """Return a causal LM without weights (`backbone.load.outline`) with its training slot, to be estimated."""
    nowhere = torch.zeros(2, model.config.hidden_size, device="meta")
    return AdaptedBackbone(Backbone(model, None, AnswerTokens(0, 1), nowhere, nowhere[:, 0], ""), lora)


def stage_of(model: AdaptedBackbone, config: Experiment, memory: int) -> int:
    """Return the ZeRO stage that a worker with so many bytes trains under; 0 without DeepSpeed."""
    engine = config.engine
    if engine.kind == "torch":
        return 0
    return choose(model, engine, config.recipe, config.prompt, memory)[0] if engine.zero == "auto" else engine.zero


def refusal(model: AdaptedBackbone, config: Experiment, memory: int) -> str | None:
    """Return one line that says why a training step does not fit, with the ways out that do, or None.

    Args:
        model: the backbone with its training slot, without weights (`dressed`).
        config: engine, recipe and prompt are read.
        memory: bytes of a worker (`available`).
    """

    def need(engine: EngineConfig) -> Estimate:
        changed = config.model_copy(update={"engine": engine})
        return estimate(model, engine, config.recipe, config.prompt, stage_of(model, changed, memory))

    found = need(config.engine)
    if found.total <= ROOM * memory:
        return None
    ways = []
    for group in _changes(config):
        for changes in group:
            less = need(config.engine.model_copy(update=changes)).total
            if less <= ROOM * memory:
                sets = " ".join(f"--set engine.{k}={str(v).lower()}" for k, v in changes.items())
                ways.append(f"{sets} ({_gib(less)})")
                break
    parts = f"weights {_gib(found.frozen)}, adapter {_gib(found.trained)}, activations {_gib(found.activations)}"
    way = ", or ".join(ways[:3]) or "more memory, a smaller backbone.path, or a shorter prompt.max_tokens"
    return f"memory: a training worker needs about {_gib(found.total)} ({parts}) of {_gib(memory)}; ways out: {way}"


def _changes(config: Experiment) -> list[list[dict[str, Any]]]:
    """Return changes of the engine that save memory, by kind, the least intrusive first."""
    engine = config.engine
    pieces, share = [2 * engine.micro_batches], -(-config.recipe.batch_size // engine.workers)
    while pieces[-1] < share:
        pieces.append(2 * pieces[-1])
    groups: list[list[dict[str, Any]]] = [
        [{"checkpointing": True}],
        [{"micro_batches": m} for m in pieces],
        [{"checkpointing": True, "micro_batches": m} for m in pieces],
    ]
    if engine.kind == "deepspeed":
        groups.append([{"zero": 3, "checkpointing": True, "workers": n} for n in (2, 4, 8) if n > engine.workers])
    return groups


def check(config: Experiment, folder: Path) -> None:
    """Refuse a training that does not fit this worker's GPU, before a weight is loaded.

    On a CPU, whose memory is not a hard limit, and for quantised weights the estimate refuses nothing.

    Args:
        config: of the run.
        folder: of the backbone; only its `config.json` is read.

    Raises:
        LsatError: with the ways out.
    """
    device = pick_device(config.backbone.device)
    if device.type != "cuda" or config.backbone.quantization:
        return
    model = dressed(outline(folder, config.backbone), config.lora)
    if line := refusal(model, config, available(device, config.engine)):
        raise LsatError(line)


def replica_refusal(model: AdaptedBackbone, batch_tokens: int, states: int, memory: int, gpus: float) -> str | None:
    """Return one line that says why a replica does not fit, with ways out, or None.

    It holds the backbone, the adapters that it serves and will serve next, prefix states, and one layer of its largest
    pass.

    Args:
        model: the backbone with a slot, without weights (`dressed`).
        batch_tokens: of the largest pass.
        states: bytes of prefix states that it keeps between requests.
        memory: bytes of a whole GPU.
        gpus: that a replica asks for; it uses one, or a part of it.
    """
    slot = {id(p) for p in model.slot_parameters().values()}
    weights = [p for p in model.parameters() if id(p) not in slot]
    frozen = sum(p.numel() * p.element_size() for p in weights)
    adapters = MODELS * sum(4 * p.numel() for p in model.slot_parameters().values())
    work = _layer(model.peft.get_base_model().config, batch_tokens * weights[0].element_size())
    need, have = frozen + adapters + states + work, int(memory * min(1.0, gpus))
    if need <= ROOM * have:
        return None
    parts = f"weights {_gib(frozen)}, adapters {_gib(adapters)}, prefix states {_gib(states)}, activations {_gib(work)}"
    ways = ["--set serve.gpus=0 --set backbone.device=auto (serve on the CPU)", "a smaller backbone.path"]
    if gpus < 1 and need <= ROOM * memory:
        ways.insert(0, "--set serve.gpus=1")
    if (fewer := int((ROOM * have - frozen - adapters - states) / work * batch_tokens)) >= FEWEST_TOKENS:
        ways.insert(0, f"--set engine.batch_tokens={fewer // FEWEST_TOKENS * FEWEST_TOKENS}")
    way = ", or ".join(ways)
    return f"memory: a replica needs about {_gib(need)} ({parts}) of {_gib(have)}; ways out: {way}"


def check_replica(
    backbone: BackboneConfig, lora: LoraSettings, batch_tokens: int, states: int, folder: Path, gpus: float
) -> None:
    """Refuse a replica that does not fit its share of a GPU, before a weight is loaded.

    As in training nothing is refused on a CPU or for quantised weights.

    Args:
        backbone: device and dtype of the weights.
        lora: shape of the adapters.
        batch_tokens: of its largest pass.
        states: bytes of prefix states that it keeps between requests.
        folder: of the backbone; only its `config.json` is read.
        gpus: that a replica asks for.

    Raises:
        LsatError: with the ways out.
    """
    device = pick_device(backbone.device)
    if device.type != "cuda" or not gpus or backbone.quantization:
        return
    model = dressed(outline(folder, backbone), lora)
    if line := replica_refusal(model, batch_tokens, states, size_of(device), gpus):
        raise LsatError(line)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
