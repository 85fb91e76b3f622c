"""Adapters in memory: seeds, slots, ranks, scales, and PEFT's own reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.lora import AdaptedBackbone, Adapter
from lsat_ray.adapters.merge import delta_arithmetic
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone import load
from lsat_ray.config import LoraSettings
from lsat_ray.errors import LsatError
from lsat_ray.scoring.score import score


def test_reset_depends_on_the_seed_alone(bench: Workbench) -> None:
    bench.model.reset(1)
    first = bench.model.snapshot()
    randomise(bench.model)
    torch.manual_seed(123)
    bench.model.reset(1)
    assert all(torch.equal(first.state[k], v) for k, v in bench.model.snapshot().state.items())
    bench.model.reset(2)
    assert not torch.equal(bench.model.snapshot().pair(first.modules()[0])[0], first.pair(first.modules()[0])[0])
    for module in first.modules():
        a, b = first.pair(module)
        assert float(b.abs().max()) == 0.0
        assert float(a.abs().max()) <= (1 / a.shape[1]) ** 0.5


def test_a_fresh_adapter_changes_nothing(bench: Workbench) -> None:
    bench.model.reset(1)
    frozen = score(bench.model, None, bench.validation)
    assert (score(bench.model, bench.model.snapshot(), bench.validation) == frozen).all()


def test_the_logits_are_those_of_the_merged_weights(bench: Workbench, tiny_backbone_folder: Path) -> None:
    """The update is `alpha / r * B @ A`, added to the frozen weight."""
    randomise(bench.model)
    adapter = bench.model.snapshot()
    worn = score(bench.model, adapter, bench.validation)
    other = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder)
    weights = dict(other.model.peft.named_parameters())
    with torch.no_grad():
        for module in adapter.modules():
            weights[f"{module}.base_layer.weight"].add_(adapter.delta(module))
    assert score(other.model, None, other.validation) == pytest.approx(worn, abs=2e-5)


def test_an_adapter_of_another_rank_and_scale_is_worn_right(bench: Workbench) -> None:
    randomise(bench.model)
    adapter = bench.model.snapshot()
    wide = delta_arithmetic([adapter, adapter], [0.25, 0.75])
    assert (wide.rank, wide.scale) == (2 * adapter.rank, 1.0)
    assert score(bench.model, wide, bench.validation) == pytest.approx(
        score(bench.model, adapter, bench.validation), abs=2e-5
    )


def test_the_training_slot_comes_back_after_another_rank(bench: Workbench) -> None:
    randomise(bench.model)
    adapter = bench.model.snapshot()
    before = score(bench.model, adapter, bench.validation)
    score(bench.model, delta_arithmetic([adapter, adapter], [1.0, 1.0]), bench.validation)
    assert (score(bench.model, adapter, bench.validation) == before).all()


def test_adapters_of_other_modules_are_refused(bench: Workbench) -> None:
    randomise(bench.model)
    adapter = bench.model.snapshot()
    state = {k.replace("q_proj", "k_proj"): v for k, v in adapter.state.items()}
    with pytest.raises(LsatError, match=r"modules are not the backbone's"):
        bench.model.wear(Adapter(state, adapter.rank, adapter.alpha))


def test_unknown_targets_are_refused(bench: Workbench, tiny_backbone_folder: Path) -> None:
    backbone = load.load(bench.experiment.backbone, tiny_backbone_folder)
    with pytest.raises(LsatError, match=r"lora\.targets"):
        AdaptedBackbone(backbone, LoraSettings(targets=("nothing_proj",)))


@pytest.mark.parametrize("rank", [4, 7])
def test_peft_opens_the_saved_adapter_and_agrees(
    bench: Workbench, tiny_backbone_folder: Path, tmp_path: Path, rank: int
) -> None:
    from peft import PeftModel

    lora = LoraSettings(rank=rank, alpha=3.5, targets=("q_proj", "v_proj", "down_proj"))
    other = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, lora=lora)
    randomise(other.model)
    adapter = other.model.snapshot()
    store = AdapterStore(tmp_path)
    folder = store.publish(other.spec(), adapter, {"auc": 0.5}, str(tiny_backbone_folder))
    plain: Any = load.load(bench.experiment.backbone, tiny_backbone_folder).model
    opened = PeftModel.from_pretrained(plain, folder).eval()
    samples = bench.periods.rows(1, "validation")
    expected = []
    with torch.no_grad():
        for ids in bench.encoder.prompt_ids(samples):
            logits = opened(input_ids=torch.tensor([ids])).logits[0, -1]
            expected.append(float(logits[bench.backbone.answers.yes] - logits[bench.backbone.answers.no]))
    assert score(other.model, store.load(other.spec().digest), other.validation) == pytest.approx(expected, abs=2e-5)
