"""RecLoRA, its ablations and TALLRec on the same few rows (arXiv 2408.03533; methods.md 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from lsat_ray.adapters.spec import AdapterSpec, Reclora
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.scoring.model import RECLORA
from lsat_ray.strategies.base import Plan, Setting, full_retraining

Part = Literal["gate", "retriever", "few2many"]
Mix = Literal["products", "factors"]


class RecloraRow:
    """Full retraining of a frozen recommender on all rows, and of gated meta-LoRAs on a few of them.

    Without the gate one LoRA stands in the place of the N; without the retriever the newest events in the place of the
    retrieved; without Few2Many the recommender trains on the language model's few rows as well.
    """

    def __init__(self, setting: Setting, name: str, without: Part | None, mix: Mix | None) -> None:
        self.setting, self.name, self.without, self.mix = setting, name, without, mix

    def plan(self, t: int) -> Plan:
        """Return the adapter; its recommender is trained before it."""
        config = self.setting.config.reclora
        gate = None if self.without == "gate" else config.gate
        if gate and self.mix:
            gate = gate.model_copy(update={"mix": self.mix})
        retriever = config.retriever
        if self.without == "retriever":
            retriever = retriever.model_copy(update={"order": "recent"})
        parts = Reclora(config.rows, retriever, gate, self._recommender(t) if gate else None)
        spec = full_retraining(replace(self.setting, learner=None), t)
        assert isinstance(spec, AdapterSpec)
        return Plan((replace(spec, reclora=parts),), RECLORA)

    def _recommender(self, t: int) -> ClassicalSpec:
        spec = full_retraining(replace(self.setting, learner="din"), t)
        assert isinstance(spec, ClassicalSpec)
        if self.without == "few2many":
            return replace(spec, rows=self.setting.config.reclora.rows, warmup=False)
        return spec


class Tallrec:
    """One LoRA on the few rows that RecLoRA's language model trains on, with the samples' own history."""

    name = "tallrec"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def plan(self, t: int) -> Plan:
        """Return the adapter; nothing stands beside it, so the endpoint can serve it."""
        spec = full_retraining(replace(self.setting, learner=None), t)
        assert isinstance(spec, AdapterSpec)
        few = Reclora(self.setting.config.reclora.rows, None, None, None)
        return Plan((replace(spec, reclora=few),))


def row(name: str, without: Part | None = None, mix: Mix | None = None) -> Callable[[Setting], RecloraRow]:
    """Return the factory of a row, for `STRATEGIES`."""
    return lambda setting: RecloraRow(setting, name, without, mix)


RECLORA_ROWS: dict[str, Callable[[Setting], RecloraRow | Tallrec]] = {
    "reclora": row("reclora"),
    "reclora-factors": row("reclora-factors", mix="factors"),
    "reclora-no-gate": row("reclora-no-gate", without="gate"),
    "reclora-no-retriever": row("reclora-no-retriever", without="retriever"),
    "reclora-no-few2many": row("reclora-no-few2many", without="few2many"),
    "tallrec": Tallrec,
}
"""The rows of this file by their names in a config."""
