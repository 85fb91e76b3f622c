"""The cumulative family: frozen earlier adapters are added to the one that is trained (methods.md 5, baselines).

What is published is the whole sum as one adapter: the earlier parts first, the newly trained part in the last r
directions, all at the spec's own scale alpha / r. Serving therefore knows nothing of the family, and the next link
finds the trained part again (`own`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from peft import LoraConfig

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.backbone.forward import hidden_states
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, collate
from lsat_ray.training.magnitudes import layers, weighted

SLOT = "frozen"
"""PEFT's name of the slot that the earlier adapters are worn in."""
DESIGN_ROWS = 256
"""Sequences from which InfLoRA takes a layer's inputs."""
ENERGY = 0.95
"""Share of the inputs' energy whose directions InfLoRA's memory holds (epsilon at the first task of its launchers)."""


def own(adapter: Adapter, rank: int) -> Adapter:
    """Return what was trained last: the final `rank` directions of a whole sum; a plain adapter is its own."""
    if adapter.rank == rank:
        return adapter
    state = {k: v[-rank:] if ".lora_A." in k else v[:, -rank:] for k, v in adapter.state.items()}
    return Adapter(state, rank, adapter.scale * rank)


def lora_alone(adapter: Adapter) -> Adapter:
    """Return an adapter without what a task trains beside LoRA's weights."""
    return Adapter({k: v for k, v in adapter.state.items() if ".lora_" in k}, adapter.rank, adapter.alpha)


def normalised(adapter: Adapter) -> Adapter:
    """Divide every A and every B by its Frobenius norm; zero stays zero."""
    return Adapter({k: v / v.norm().clamp(min=1e-12) for k, v in adapter.state.items()}, adapter.rank, adapter.alpha)


def earlier(spec: AdapterSpec, adapters: Sequence[Adapter]) -> Adapter:
    """Return the sum that is worn beside the training slot, of rank n r, at the spec's scale.

    Args:
        spec: with `frozen`; kinds `sum` and `sd` add normalised parts, `orthogonal` and `inf` the parts as they are.
        adapters: what `spec.frozen.adapters` were published as, in that order.

    Raises:
        LsatError: when their number, modules or scale are not the spec's.
    """
    assert spec.frozen is not None
    rank, scale = spec.lora.rank, spec.lora.alpha / spec.lora.rank
    if len(adapters) != len(spec.frozen.adapters):
        raise LsatError(
            f"adapter {spec.digest[:12]}: its spec freezes {len(spec.frozen.adapters)} adapters, {len(adapters)} given"
        )
    parts = [own(a, rank) for a in adapters]
    if spec.frozen.kind in ("sum", "sd"):
        parts = [normalised(p) for p in parts]
    if any(p.state.keys() != parts[0].state.keys() or abs(p.scale - scale) > 1e-6 * scale for p in parts):
        raise LsatError("frozen: the earlier adapters differ in modules or scale; train all under one lora section")
    return _stack(parts, scale)


class Beside:
    """The earlier adapters of one spec, worn in a second, frozen slot while the training slot is fitted."""

    def __init__(self, model: AdaptedBackbone, spec: AdapterSpec, adapters: Sequence[Adapter]) -> None:
        assert spec.frozen is not None
        if spec.keep_old:
            raise LsatError("frozen: keep_old has no meaning for a sum; leave it out")
        if spec.frozen.kind == "inf" and spec.init:
            raise LsatError("frozen: InfLoRA designs its A, so it starts from no adapter; leave init out")
        self.kind = spec.frozen.kind
        self.count = len(adapters)
        if not adapters and self.kind != "inf":
            raise LsatError(f"frozen: kind {self.kind} needs an earlier adapter; name at least one")
        self.past = earlier(spec, adapters) if adapters else None
        self.memory = adapters[-1].memory if adapters else {}
        """InfLoRA: by module, the main directions of the inputs so far, orthonormal rows [k, in]."""
        if self.kind == "inf" and self.past and self.memory.keys() != set(self.past.modules()):
            raise LsatError("frozen: the newest earlier adapter has no memory of its inputs; train the chain with it")
        self._model = model
        self._stack = ExitStack()

    def start(self, train: Encoded) -> None:
        """Wear the earlier adapters beside the training slot, whose initial weights must be there already.

        Args:
            train: rows whose layer inputs InfLoRA's A is designed from; the other kinds do not read them.
        """
        model = self._model
        if self.past:
            self._wear(self.past)
        if self.kind == "sd":
            assert self.past is not None
            modules, device = len(self.past.modules()), model.device
            model.magnitude = torch.nn.Parameter(torch.ones(modules, self.count + 1, device=device))
            ranks = [self.past.rank // self.count] * self.count
            self._stack.enter_context(weighted(model, SLOT, lambda: self._magnitude()[:, :-1], ranks))
            self._stack.enter_context(weighted(model, "slot", lambda: self._magnitude()[:, -1:], [model.lora.rank]))
        if self.kind == "inf":
            self._design(train)

    def remember(self, trained: Adapter, train: Encoded) -> None:
        """Extend InfLoRA's memory by the layers' inputs under the trained weights; the other kinds have none.

        Args:
            trained: what is kept of the fit.
            train: the rows of `start`.
        """
        if self.kind != "inf":
            return
        self._model.restore(trained.state)
        moments, rank = _input_moments(self._model, train), self._model.lora.rank
        self.memory = {m: extended(self.memory.get(m), moment, rank) for m, moment in moments.items()}

    def whole(self, trained: Adapter) -> Adapter:
        """Return earlier and trained parts as one adapter, SD-LoRA's magnitudes folded into B, all else as it is."""
        besides = {k: v for k, v in trained.state.items() if ".lora_" not in k and k != "magnitude"}
        parts = [*([self.past] if self.past else []), lora_alone(trained)]
        if self.kind == "sd":
            assert self.past is not None
            each, magnitude = self.past.rank // self.count, trained.state["magnitude"]
            parts = [
                _scaled(parts[0], magnitude[:, :-1].repeat_interleave(each, dim=1)),
                _scaled(parts[1], magnitude[:, -1:].expand(-1, trained.rank)),
            ]
        whole = _stack(parts, trained.scale)
        memory = self.memory if self.kind == "inf" else {}
        return replace(whole, state={**whole.state, **besides}, memory=memory)

    def close(self) -> None:
        """Remove the second slot; the model is as before."""
        self._stack.close()
        model = self._model
        model.magnitude, model.fixed = None, frozenset()
        if SLOT in model.peft.peft_config:
            model.peft.delete_adapter(SLOT)
        model.peft.set_adapter("slot")

    def _magnitude(self) -> torch.Tensor:
        assert self._model.magnitude is not None
        return self._model.magnitude

    def _wear(self, past: Adapter) -> None:
        model, rank = self._model, past.rank
        shape = {**model.config.to_dict(), "r": rank, "lora_alpha": rank}
        model.peft.add_adapter(SLOT, LoraConfig(**shape))
        model.peft.base_model.set_adapter(["slot", SLOT])
        for layer in layers(model, SLOT).values():
            layer.scaling[SLOT] = past.scale
        with torch.no_grad():
            for name, parameter in model.slot_parameters(SLOT).items():
                parameter.requires_grad_(False)
                parameter.copy_(past.state[name])

    def _design(self, train: Encoded) -> None:
        """Set A to the main directions of a layer's inputs outside the memory, and hold it (InfLoRA)."""
        model = self._model
        own_slot = model.slot_parameters()
        moments = _input_moments(model, train)
        with torch.no_grad():
            for module, moment in moments.items():
                a = own_slot[f"{module}.lora_A.weight"]
                a.requires_grad_(False)
                a.copy_(design(moment, self.memory.get(module), model.lora.rank))
        model.fixed = frozenset(f"{module}.lora_A.weight" for module in moments)


@contextmanager
def beside(model: AdaptedBackbone, spec: AdapterSpec, adapters: Sequence[Adapter]) -> Iterator[Beside | None]:
    """Yield the `Beside` of a spec, or None where it freezes nothing, and take it off at the end."""
    if spec.frozen is None:
        yield None
        return
    extra = Beside(model, spec, adapters)
    try:
        yield extra
    finally:
        extra.close()


def design(moment: torch.Tensor, memory: torch.Tensor | None, rank: int) -> torch.Tensor:
    """Return InfLoRA's A [rank, in]: the main directions of the inputs outside the memory, orthonormal rows.

    Args:
        moment: [in, in], second moment of the layer's inputs.
        memory: [k, in] orthonormal rows, k <= in - rank (`extended`); None: nothing is remembered.
        rank: rows wanted.
    """
    _, rows = _main(moment, memory)
    return rows[:rank].float()


def extended(memory: torch.Tensor | None, moment: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a memory with the fewest further directions that let it hold `ENERGY` of the inputs' energy (GPM).

    DualGPM, as InfLoRA has it, keeps the complement where that is smaller: another form of the same projection. What is
    remembered is never forgotten, and `rank` directions stay free for the next A.

    Args:
        memory: [k, in] orthonormal rows, None before the first task.
        moment: [in, in], second moment of the layer's inputs.
        rank: of the adapters.
    """
    values, rows = _main(moment, memory)
    known = float(moment.trace()) - float(values.sum())
    short = known + values.cumsum(0) < ENERGY * float(moment.trace())
    count = 0 if known >= ENERGY * float(moment.trace()) else min(int(short.sum()) + 1, max(0, len(rows) - rank))
    return torch.cat([*([] if memory is None else [memory]), rows[:count].float()])


def _main(moment: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return energies [f], largest first, and directions [f, in] of inputs in what a memory leaves free."""
    moment = moment.double().cpu()
    free = torch.eye(len(moment), dtype=torch.float64)
    if memory is not None and len(memory):
        free = torch.linalg.svd(memory.double().cpu(), full_matrices=True)[2][len(memory) :]
    values, vectors = torch.linalg.eigh(free @ moment @ free.T)
    rows = vectors.flip(1).T @ free
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return values.flip(0).clamp(min=0), rows * largest.sign()  # the sign of an eigenvector is free: fix it


def _input_moments(model: AdaptedBackbone, train: Encoded) -> dict[str, torch.Tensor]:
    """Return the second moment of each layer's inputs over some sequences, evenly spaced: float64 [in, in] per module.

    One sequence at a time, by the decoder's own forward: every token counts, padding does not, and neither
    micro-batches nor packing nor a budget of tokens has a say.
    """
    chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), DESIGN_ROWS)).astype(np.int64))
    moments: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, layer in layers(model, "slot").items():

            def add(module: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                x = inputs[0].flatten(0, -2).double()
                moments[name] = moments.get(name, 0.0) + x.T @ x

            stack.callback(layer.register_forward_pre_hook(add).remove)
        model.eval()
        with torch.no_grad():
            for sequence in chosen:
                hidden_states(model.decoder, collate(train, np.array([sequence])).to(model.device))
    return moments


def _scaled(adapter: Adapter, columns: torch.Tensor) -> Adapter:
    """Multiply the columns of every module's B; `columns` is [M, rank], modules sorted by name."""
    state = dict(adapter.state)
    for row, module in zip(columns, adapter.modules(), strict=True):
        state[f"{module}.lora_B.weight"] = state[f"{module}.lora_B.weight"] * row
    return Adapter(state, adapter.rank, adapter.alpha)


def _stack(parts: Sequence[Adapter], scale: float) -> Adapter:
    """Concatenate adapters of one scale, bit for bit."""
    names = parts[0].state
    state = {k: torch.cat([p.state[k] for p in parts], dim=0 if ".lora_A." in k else 1) for k in names}
    rank = sum(p.rank for p in parts)
    return Adapter(state, rank, scale * rank)
