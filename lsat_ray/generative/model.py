"""A frozen backbone with LoRA slots whose answers are codes, and the codes' own trainable rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.backbone.forward import answer_states
from lsat_ray.backbone.load import Backbone
from lsat_ray.backbone.states import PrefixStates
from lsat_ray.config import LoraSettings
from lsat_ray.errors import LsatError
from lsat_ray.generative.backbone import CodeBackbone
from lsat_ray.prompts.answer import AnswerTokens
from lsat_ray.prompts.batch import Batch

EMBEDDING, HEAD = "codes.embedding", "codes.head"
"""Names of the codes' rows in an adapter's state, beside PEFT's."""


def parted(adapter: Adapter) -> tuple[Adapter, dict[str, torch.Tensor]]:
    """Return an adapter's LoRA weights and its rows of the codes (empty where they are not trained)."""
    rows = {k: v for k, v in adapter.state.items() if k in (EMBEDDING, HEAD)}
    return replace(adapter, state={k: v for k, v in adapter.state.items() if k not in rows}), rows


def joined(adapter: Adapter, rows: dict[str, torch.Tensor]) -> Adapter:
    """Return the adapter with rows of the codes."""
    return replace(adapter, state={**adapter.state, **rows})


class CodeEmbedding(nn.Module):
    """A frozen table of embeddings under trainable rows for the codes."""

    def __init__(self, base: nn.Module, tokens: torch.Tensor, rows: nn.Parameter) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        weight: torch.Tensor = base.weight  # type: ignore[assignment]
        place = torch.full((weight.shape[0],), -1, dtype=torch.long, device=weight.device)
        place[tokens] = torch.arange(len(tokens), device=weight.device)
        self.register_buffer("place", place, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings [..., H]."""
        place = self.place[ids]  # type: ignore[index]
        frozen = self.base(ids)
        own = functional.embedding(place.clamp(min=0), self.rows).to(frozen.dtype)
        return torch.where((place >= 0)[..., None], own, frozen)


class GenerativeModel(AdaptedBackbone):
    """`AdaptedBackbone` for the second task: calling it gives the logits of all codes at each answer of a batch.

    With `train_codes` the embedding and the head's rows of the codes are part of every adapter, as the embedding and
    head are in PESO (methods.md 5c); the words' rows stay frozen, and are no candidates for an answer.
    """

    def __init__(
        self, backbone: CodeBackbone, lora: LoraSettings, train_codes: bool = True, checkpointing: bool = False
    ) -> None:
        model, codes = backbone.model, backbone.codes
        output = model.get_output_embeddings()
        tokens = torch.from_numpy(codes.tokens).to(output.weight.device)
        head = output.weight.detach()[tokens].float().clone()
        bias = torch.zeros(len(tokens), device=head.device)
        if getattr(output, "bias", None) is not None:
            bias = output.bias.detach()[tokens].float().clone()
        model.config.use_cache = False
        wrapped = Backbone(model, backbone.tokenizer, AnswerTokens(0, 1), head, bias, backbone.fingerprint)
        super().__init__(wrapped, lora, checkpointing)
        self.codes = codes
        self.train_codes = train_codes
        base = model.get_input_embeddings()
        self._start = {EMBEDDING: base.weight.detach()[tokens].float().cpu().clone(), HEAD: head.cpu().clone()}
        device = head.device
        self.rows = nn.ParameterDict(
            {
                name.removeprefix("codes."): nn.Parameter(value.clone().to(device), requires_grad=train_codes)
                for name, value in self._start.items()
            }
        )
        ids = tokens[:: max(1, len(tokens) // 16)][None]
        with torch.no_grad():
            whole = model(input_ids=ids).logits[0, -1, tokens].float()
            model.set_input_embeddings(CodeEmbedding(base, tokens, self.rows["embedding"]))
            own = self.logits(self._decoder[0](input_ids=ids).last_hidden_state[0, -1])
        if not torch.allclose(whole, own, rtol=2e-2, atol=2e-2 * float(whole.abs().max() + 1)):
            raise LsatError(
                f"backbone: {type(model).__name__} scales its embeddings or its logits, which the codes' own rows "
                "leave out; use another backbone"
            )
        self.eval()

    def code_rows(self) -> dict[str, nn.Parameter]:
        """Return the live rows of the codes by their names in an adapter."""
        return {EMBEDDING: self.rows["embedding"], HEAD: self.rows["head"]}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer may change: the training slot and, where they are trained, the codes' rows."""
        return {**super().trainable(), **(self.code_rows() if self.train_codes else {})}

    def reset(self, seed: int) -> None:
        """Initialise the training slot, and give the codes the backbone's rows."""
        super().reset(seed)
        self.set_rows({})

    def wear(self, adapter: Adapter) -> None:
        """Put on an adapter; where it has no rows of the codes they are the backbone's."""
        lora, rows = parted(adapter)
        super().wear(lora)
        self.set_rows(rows)

    def forward(self, batch: Batch, states: PrefixStates | None = None) -> torch.Tensor:
        """Return the logits of every class at each answer, float32 [N, M * size]."""
        return self.logits(answer_states(self._decoder[0], batch, self.checkpointing, self.packing, states=states))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of every class, float32, for last hidden states [..., H]."""
        return hidden.float() @ self.rows["head"].T + self.head_bias  # type: ignore[operator]

    def set_rows(self, rows: dict[str, torch.Tensor]) -> None:
        """Copy rows of the codes in; those that are not given are the backbone's."""
        with torch.no_grad():
            for name, parameter in self.code_rows().items():
                parameter.copy_(rows.get(name, self._start[name]))
