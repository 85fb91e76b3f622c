"""The only module that imports DeepSpeed: ZeRO stages 0 to 3 behind the `Engine` of the step loop."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.config import Recipe
from lsat_ray.errors import LsatError
from lsat_ray.training.frozen import SLOT as FROZEN_SLOT


def library() -> Any:
    """Import DeepSpeed for this machine."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed decorates an optimizer that is not used here with torch.compile, which loads the compiler: a second.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # inference only, and needs a compiler
    return deepspeed


class Shards:
    """ZeRO-3 before training: a `backbone.sharding.Sharding` whose ranks load a shard of every weight each.

    Rank 0 reads a file's tensors on the host, one layer at a time is sent to the ranks, and each keeps its part.
    """

    def __init__(self) -> None:
        self._deepspeed = library()

    @contextmanager
    def loading(self, dtype: torch.dtype) -> Iterator[None]:
        from transformers.integrations import HfDeepSpeedConfig

        kept = HfDeepSpeedConfig({**self._settings(), "bf16": {"enabled": dtype == torch.bfloat16}})
        yield
        del kept  # transformers holds it weakly, and asks for it whenever a model is built

    def gathered(self, parameters: Iterable[torch.Tensor]) -> AbstractContextManager[None]:
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters(list(parameters), modifier_rank=None)  # type: ignore[no-any-return]

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        engine, *_ = self._deepspeed.initialize(model=model, config=self._settings())
        yield
        engine.destroy()

    def _settings(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
            "steps_per_print": 10**9,
        }


class DeepSpeedEngine:
    """One rank of a group that `torch.distributed` has already formed.

    DeepSpeed divides a loss by the accumulation steps and averages gradients over ranks; `backward` undoes both, so
    that the step is on the mean over the targets of the global batch. It gets exactly one parameter group, of the
    LoRA weights alone, and torch's own AdamW.
    """

    def __init__(self, stage: int) -> None:
        self._deepspeed = library()
        self.kind = f"deepspeed zero {stage}"
        self.stage = stage
        self.splits = stage == 3
        self.rank = distributed.get_rank()
        self.world = distributed.get_world_size()
        self.shares: Sequence[int] = [self.rank]

    @contextmanager
    def whole(self, model: AdaptedBackbone) -> Iterator[None]:
        """Gather the slot's weights where ZeRO-3 has split them, and split what was written again."""
        from deepspeed.runtime.zero import GatheredParameters

        parameters = [p for p in {**model.slot_parameters(), **model.trainable()}.values() if hasattr(p, "ds_id")]
        with GatheredParameters(parameters, modifier_rank=0, enabled=bool(parameters)):
            yield

    def begin(self, model: AdaptedBackbone, recipe: Recipe, micro_batches: int) -> None:
        """Wrap the model's training slot with a fresh AdamW.

        Raises:
            LsatError: when frozen adapters are worn beside it under ZeRO-3, whose tracing of modules then fails or not
                depending on what was trained before (seen with DeepSpeed 0.19.8).
        """
        if self.stage == 3 and FROZEN_SLOT in model.peft.peft_config:
            raise LsatError("engine.zero: stage 3 does not carry the cumulative family; use 0, 1 or 2")
        self._model = model
        self._micro_batches = micro_batches
        parameters = list(model.trainable().values())
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        self._optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": recipe.clip,
            "zero_optimization": {"stage": self.stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        self._engine, *_ = self._deepspeed.initialize(
            model=model, model_parameters=parameters, optimizer=self._optimizer, config=settings
        )
        self._pending = 0

    def logits(self, batch: Any) -> torch.Tensor:
        """Run the wrapped model."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this rank's share of the global mean loss."""
        if self._pending:
            self._engine.step()  # not yet at the accumulation border: only counts
        self._engine.backward(loss * (self.world * self._micro_batches))
        self._pending += 1

    def end_share(self) -> None:
        """Nothing: DeepSpeed reduces gradients while it computes them."""

    def step(self, lr: float) -> None:
        """Average, clip and update."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        self._pending = 0

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Return every rank's AdamW state: its share where ZeRO has split it, in DeepSpeed's own order."""
        mine = {
            f"{self.rank}.{number}.{name}": value.detach().cpu().clone()
            for number, state in enumerate(self._optimizer.state.values())
            for name, value in state.items()
        }
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, mine)
        return {k: v for part in parts for k, v in part.items()}

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load this rank's part of what `optimizer_state` returned."""
        optimizer = self._optimizer
        owners = list(optimizer.state) or [p for group in optimizer.param_groups for p in group["params"]]
        if not owners:  # ZeRO-3 lends its shards to the optimizer during a step only
            owners = list(self._engine.optimizer.fp32_partitioned_groups_flat)
        for key, value in state.items():
            rank, number, name = key.split(".")
            if int(rank) != self.rank:
                continue
            owner = owners[int(number)]
            device = "cpu" if name == "step" else owner.device
            optimizer.state[owner][name] = value.clone().to(device)

    def snapshot(self) -> Adapter:
        """Return the current weights, gathered."""
        with self.whole(self._model):
            return self._model.snapshot()

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Concatenate the ranks' arrays."""
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, values)
        return np.concatenate(parts)

    def finish(self) -> None:
        """Drop DeepSpeed's hooks and buffers."""
        self._engine.destroy()
        del self._engine, self._optimizer, self._model
