"""LoRA adapters in memory, and the frozen backbone that wears them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsat_ray.backbone import gated, lean
from lsat_ray.backbone.dropout import Dropout
from lsat_ray.backbone.forward import answer_states, text_loss
from lsat_ray.backbone.load import Backbone
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.config import LoraSettings
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Batch


@dataclass(frozen=True)
class Adapter:
    """LoRA weights: every adapted module's update is `scale * B @ A`."""

    state: dict[str, torch.Tensor]
    """PEFT's names (`base_model.model....lora_A.weight`) to float32 CPU tensors; A is [r, in], B is [out, r]."""
    rank: int
    alpha: float
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the next link of its chain must know of it beside its weights; never worn (InfLoRA's input directions)."""

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def modules(self) -> list[str]:
        """Return the adapted modules' names, sorted."""
        return sorted(k.removesuffix(".lora_A.weight") for k in self.state if k.endswith(".lora_A.weight"))

    def pair(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (A [r, in], B [out, r]) of a module."""
        return self.state[f"{module}.lora_A.weight"], self.state[f"{module}.lora_B.weight"]

    def delta(self, module: str) -> torch.Tensor:
        """Return the update `scale * B @ A` of a module, [out, in]."""
        a, b = self.pair(module)
        return self.scale * (b @ a)


class AdaptedBackbone(nn.Module):
    """A frozen backbone with LoRA slots; calling it gives the two answer logits of each target of a batch."""

    def __init__(
        self, backbone: Backbone, lora: LoraSettings, checkpointing: bool = False, packing: bool = False
    ) -> None:
        from peft import LoraConfig, get_peft_model  # seconds: only who builds a model pays them

        super().__init__()
        self.lora = lora
        self.checkpointing = checkpointing
        self.packing = packing
        self.config = LoraConfig(
            r=lora.rank,
            lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
            lora_dropout=0.0,  # ours is put in below
            target_modules=list(lora.targets),
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            self.peft = get_peft_model(backbone.model, self.config, adapter_name="slot")
        except ValueError as error:
            raise LsatError(
                f"lora.targets: {' '.join(str(error).split())[:200]}; name linear modules of the backbone"
            ) from error
        self._set_dropout()
        self._wide: dict[int, str] = {lora.rank: "slot"}
        self._several: dict[tuple[int, int], torch.Tensor] = {}  # scales [C, C] of slots with C adapters of a rank
        self.fixed: frozenset[str] = frozenset()  # weights of the training slot that are not trained (InfLoRA's A)
        self.slot, self.members = "slot", 1  # the training slot, and the meta-LoRAs in it (`personal`)
        self.gate: Any
        self.register_module("gate", None)  # over the meta-LoRAs
        self.magnitude: nn.Parameter | None
        self.register_parameter("magnitude", None)  # SD-LoRA's; set by `frozen.Beside`
        self._decoder = [self.peft.get_base_model().get_decoder()]  # in a list: not a second registration
        self._output = [backbone.model.get_output_embeddings()]
        self._answers = (backbone.answers.no, backbone.answers.yes)
        self.register_buffer("head", backbone.head, persistent=False)
        self.register_buffer("head_bias", backbone.bias, persistent=False)
        if checkpointing:
            self.peft.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        self.eval()

    def _set_dropout(self) -> None:
        """Give the training slot our dropout, and take that of the frozen backbone away, which a generator drives."""
        for module in self.peft.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        if self.lora.dropout:
            layers = self.layers()
            for number, name in enumerate(sorted(layers)):
                layers[name].lora_dropout["slot"] = Dropout(self.lora.dropout, number)

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return self.head.device  # type: ignore[return-value]

    @property
    def decoder(self) -> Any:
        """The adapted decoder, without the head."""
        return self._decoder[0]

    def slot_parameters(self, slot: str | None = None) -> dict[str, nn.Parameter]:
        """Return the LoRA weights of a slot (None: the training slot) by PEFT's file names, in the model's order."""
        mark = f".{slot or self.slot}.weight"
        found = {}
        for name, parameter in self.peft.named_parameters():
            if name.endswith(mark) and ".lora_" in name:
                found[name.removesuffix(mark) + ".weight"] = parameter
        return found

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer may change: the training slot without what is fixed, magnitudes (SD-LoRA), gate."""
        found = {k: v for k, v in self.slot_parameters().items() if k not in self.fixed}
        if self.gate is not None:
            found |= {f"gate.{k}": v for k, v in self.gate.named_parameters()}
        return found if self.magnitude is None else {**found, "magnitude": self.magnitude}

    def reset(self, seed: int) -> None:
        """Initialise the training slot: A kaiming-uniform from the seed alone, B zero (methods.md 1b)."""
        generator = torch.Generator().manual_seed(seed)
        self.use_slot(self.slot, self.lora.alpha / self.lora.rank)
        with torch.no_grad():
            for name, parameter in self.slot_parameters().items():
                if ".lora_A." in name:
                    bound = math.sqrt(1.0 / parameter.shape[1])  # kaiming_uniform_ with a = sqrt(5)
                    values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
                    parameter.copy_(values)
                else:
                    parameter.zero_()
        if self.gate is not None:
            self.gate.reset(generator)

    def wear(self, adapter: Adapter) -> None:
        """Copy an adapter into the slot of its rank and switch to it.

        Raises:
            LsatError: when its modules are not this backbone's.
        """
        slot = self._wide.get(adapter.rank)
        if slot is None:
            slot = self._wide[adapter.rank] = self._add(f"rank{adapter.rank}", adapter.rank)
        own = self.slot_parameters(slot)
        _check_modules(own, adapter)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(adapter.state[name])
        self.use_slot(slot, adapter.scale)

    @property
    def wears_several(self) -> bool:
        """Whether one pass can give each of several adapters a copy of the batch."""
        return lean.supports(self.decoder)

    def wear_several(self, adapters: Sequence[Adapter | None]) -> None:
        """Put C adapters side by side into one slot, for `several`; None is the frozen backbone.

        Raises:
            LsatError: when the modules of one are not this backbone's.
        """
        count, rank = len(adapters), max(a.rank for a in adapters if a)
        slot = f"{count}x{rank}"
        if (count, rank) not in self._several:
            self._add(slot, count * rank)
            scales = self._several[count, rank] = torch.zeros(count, count, device=self.device)
            for layer in self.layers().values():
                if slot in layer.lora_A:
                    gated.gate(layer.lora_A[slot], gated.Mixing(lambda: scales, factors=False))
        own = self.slot_parameters(slot)
        with torch.no_grad():
            self._several[count, rank].copy_(torch.diag(torch.tensor([a.scale if a else 0.0 for a in adapters])))
            for parameter in own.values():
                parameter.zero_()
            for number, adapter in enumerate(adapters):
                if adapter is None:
                    continue
                _check_modules(own, adapter)
                place = slice(number * rank, number * rank + adapter.rank)
                for name, parameter in own.items():
                    part = parameter[place] if ".lora_A." in name else parameter[:, place]
                    part.copy_(adapter.state[name])
        self.use_slot(slot, 1.0)

    def _add(self, slot: str, rank: int) -> str:
        """Add a slot without dropout to every adapted module."""
        self.peft.add_adapter(slot, type(self.config)(**{**self.config.to_dict(), "r": rank, "lora_alpha": rank}))
        return slot

    def use_slot(self, slot: str, scale: float) -> None:
        """Make a slot the only active one, its update scaled by `scale`."""
        if self.peft.active_adapter != slot:
            self.peft.set_adapter(slot)
        for module in self.layers().values():
            if slot in module.scaling:
                module.scaling[slot] = scale

    def layers(self) -> dict[str, Any]:
        """Return PEFT's LoRA layers by name."""
        from peft.tuners.lora import LoraLayer

        return {n: m for n, m in self.peft.named_modules() if isinstance(m, LoraLayer)}

    def snapshot(self) -> Adapter:
        """Return a copy of the training slot, magnitudes included where there are some."""
        live = {**self.slot_parameters(), **self.trainable()}
        state = {k: v.detach().float().cpu().clone() for k, v in live.items()}
        return Adapter(state, self.lora.rank * self.members, self.lora.alpha * self.members)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Copy what `snapshot` gave back into the training slot (and its magnitudes)."""
        with torch.no_grad():
            for name, parameter in {**self.slot_parameters(), **self.trainable()}.items():
                parameter.copy_(state[name])

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Switch all adapters off: the frozen backbone."""
        with self.peft.disable_adapter():
            yield

    def forward(self, batch: Batch, states: PrefixStates | None = None) -> torch.Tensor:
        """Return the logits of (No, Yes) at each target's answer, float32 [N, 2]; the loss [N] of a `language` batch.

        For the logits two rows of the head are used and no vocabulary-wide softmax is taken.

        Args:
            batch: N targets.
            states: of its prefix under what is worn, as `forward.answer_states` reads and keeps them.

        Raises:
            LsatError: when a gate is to mix for samples that share tokens, or whose vectors are missing.
        """
        if batch.language:
            if self.gate is not None:
                raise LsatError("recipe.loss: language is not made for the gate of reclora; set it to answer")
            return text_loss(self.decoder, self._output[0], batch, self._answers)
        if self.gate is not None:
            if batch.profile is None or len(batch.prefix) or len(batch.answer) != len(batch.tokens):
                raise LsatError(
                    "reclora: one prompt with its own vector is needed per sample; set prompt.layout: exact"
                )
            self.gate.weights = self.gate(batch.profile)
        packing = self.packing and self.gate is None
        return self._logits(answer_states(self.decoder, batch, self.checkpointing, packing, states=states))

    def several(self, batch: Batch, count: int, states: PrefixStates | None = None) -> torch.Tensor:
        """Return the logits under each of the `count` adapters that `wear_several` put on, float32 [C, N, 2]."""
        return self._logits(answer_states(self.decoder, batch, copies=count, states=states)).view(count, -1, 2)

    def _logits(self, read: torch.Tensor) -> torch.Tensor:
        return read.float() @ self.head.T + self.head_bias  # type: ignore[operator]


def _check_modules(own: dict[str, nn.Parameter], adapter: Adapter) -> None:
    if own.keys() != adapter.state.keys():
        odd = sorted(own.keys() ^ adapter.state.keys())[0]
        raise LsatError(f"adapter: its modules are not the backbone's ({odd} is on one side only); check lora.targets")
