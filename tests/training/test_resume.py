"""Long runs: an interrupted fit ends with the same bytes, and a fit that runs out of memory with the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fit import SETTINGS, run, same
from workbench import Workbench, make_workbench

from lsat_ray.config import EngineConfig, LoraSettings, Recipe
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Batch
from lsat_ray.training.checkpoint import FACTS, TENSORS, Checkpointer
from lsat_ray.training.fit import Elastic, Fitted, Resumable, TorchEngine, fit, sharded_margins
from lsat_ray.training.step import OutOfMemory

RECIPE = Recipe(lr=5e-3, batch_size=8, epochs=2, eval_every=3, patience=5, warmup=5)


class Death(Exception):
    """What a kill looks like from inside."""


class Mortal(TorchEngine):
    """Dies after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, lr: float) -> None:
        if self.left == 0:
            raise Death
        self.left -= 1
        super().step(lr)


def fit_with(bench: Workbench, engine: Any, checkpoint: Checkpointer | None, **changes: Any) -> Fitted:
    """Fit with an engine and a place for states."""
    spec = bench.spec(**({"recipe": RECIPE} | changes))
    return fit(spec, bench.model, bench.train, bench.validation, engine, SETTINGS, checkpoint=checkpoint)


@pytest.fixture
def dropping(tiny_experiment: Any, tiny_periods: Any, tiny_backbone_folder: Path) -> Workbench:
    """Return a workbench with dropout, whose masks must go on where they were."""
    lora = LoraSettings(rank=4, alpha=8, dropout=0.2)
    return make_workbench(tiny_experiment, tiny_periods, tiny_backbone_folder, lora=lora)


@pytest.mark.parametrize("deaths", [[5], [1, 3, 0, 6], [12]])
def test_an_interrupted_fit_ends_with_the_same_bytes(dropping: Workbench, tmp_path: Path, deaths: list[int]) -> None:
    whole = fit_with(dropping, TorchEngine(), None)
    states = Checkpointer(tmp_path, every=2)
    for steps in deaths:
        with pytest.raises(Death):
            fit_with(dropping, Mortal(steps), states)
        torch.manual_seed(1234)
    engine = Mortal(10**6)
    again = fit_with(dropping, engine, states)
    assert same(again.adapter, whole.adapter)
    assert again.margin.tobytes() == whole.margin.tobytes()
    assert (again.history, again.figure, again.best_step) == (whole.history, whole.figure, whole.best_step)
    assert (again.steps, again.targets) == (whole.steps, whole.targets)
    done = 10**6 - engine.left
    assert done < whole.steps


def test_saving_changes_nothing(dropping: Workbench, tmp_path: Path) -> None:
    assert same(
        fit_with(dropping, TorchEngine(), Checkpointer(tmp_path, 1)).adapter,
        fit_with(dropping, TorchEngine(), None).adapter,
    )


def test_a_finished_fit_is_not_done_again(bench: Workbench, tmp_path: Path) -> None:
    states = Checkpointer(tmp_path, 1)
    first = fit_with(bench, TorchEngine(), states)
    again = fit_with(bench, Mortal(0), states)
    assert same(first.adapter, again.adapter)
    states.clear(bench.spec(recipe=RECIPE).digest)
    with pytest.raises(Death):
        fit_with(bench, Mortal(0), states)


def test_states_belong_to_their_spec(bench: Workbench, tmp_path: Path) -> None:
    states = Checkpointer(tmp_path, 1)
    fit_with(bench, TorchEngine(), states)
    assert same(
        fit_with(bench, TorchEngine(), states, seed=7).adapter, fit_with(bench, TorchEngine(), None, seed=7).adapter
    )


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_damaged_state_gives_way_to_the_one_before(bench: Workbench, tmp_path: Path, name: str) -> None:
    whole = fit_with(bench, TorchEngine(), None)
    states = Checkpointer(tmp_path, 2)
    with pytest.raises(Death):
        fit_with(bench, Mortal(9), states)
    folders = sorted((tmp_path / bench.spec(recipe=RECIPE).digest).iterdir())
    assert [f.name for f in folders] == ["step-00000006", "step-00000008"]
    data = bytearray((folders[1] / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folders[1] / name).write_bytes(data)
    told: list[str] = []
    spec = bench.spec(recipe=RECIPE)
    again = fit(
        spec,
        bench.model,
        bench.train,
        bench.validation,
        TorchEngine(),
        SETTINGS,
        progress=told.append,
        checkpoint=states,
    )
    assert told[0] == "resumed at step 6"
    assert same(again.adapter, whole.adapter)


def test_torn_states_are_not_seen(tmp_path: Path) -> None:
    states = Checkpointer(tmp_path, 1)
    states.save("d" * 64, 4, {"x": torch.arange(3)}, {"step": 4})
    torn = tmp_path / ("d" * 64) / "step-00000005"
    torn.mkdir()
    (torn / TENSORS).write_bytes(b"half")
    (tmp_path / ("d" * 64) / ".step-00000006.abc").mkdir()
    found = states.load("d" * 64)
    assert found is not None
    assert (found[0]["x"].tolist(), found[1]) == ([0, 1, 2], {"step": 4})
    assert states.load("e" * 64) is None


@pytest.mark.parametrize("changes", [{"world": 2}, {"kind": "deepspeed zero 1"}, {"kind": "deepspeed zero 2"}])
def test_a_state_of_another_engine_is_left_with_a_word(
    bench: Workbench, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Its optimizer has another form: loading it would fail, or be wrong."""
    states, told = Checkpointer(tmp_path, 2), []
    dying = Mortal(5)
    for name, value in changes.items():
        setattr(dying, name, value)
    dying.gather = lambda values: values  # type: ignore[method-assign]
    with pytest.raises(Death):
        fit_with(bench, dying, states)
    engine, spec = Mortal(10**6), bench.spec(recipe=RECIPE)
    whole = fit(
        spec, bench.model, bench.train, bench.validation, engine, SETTINGS, progress=told.append, checkpoint=states
    )
    assert 10**6 - engine.left == whole.steps
    assert told[0].startswith("not resumed: the state of step 4 is of ")
    assert not any("resumed" in line for line in told[1:])
    assert same(whole.adapter, fit_with(bench, TorchEngine(), None).adapter)


def test_states_hold_no_pickle(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(Death):
        fit_with(bench, Mortal(5), Checkpointer(tmp_path, 2))
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {TENSORS, FACTS}
    json.loads(next(tmp_path.rglob(FACTS)).read_text())


class Small(TorchEngine):
    """A device with room for so many sequences in a training step."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def logits(self, batch: Batch) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.sizes.append(len(batch.tokens))
            if len(batch.tokens) > self.room:
                super().logits(batch)  # the memory goes in the middle of the work
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().logits(batch)


def test_memory_running_out_halves_the_micro_batch_and_keeps_the_batch(bench: Workbench) -> None:
    recipe = Recipe(lr=5e-3, batch_size=16, epochs=1)
    engine = Small(5)
    spec = bench.spec(recipe=recipe)
    fitted = fit(spec, bench.model, bench.train, bench.validation, engine, SETTINGS)
    assert engine.sizes[:6] == [16, 8, 4, 4, 4, 4]
    assert set(engine.sizes[6:]) <= {4, 3, 2, 1}  # found once, then known
    assert fitted.targets == len(bench.train.row)
    plain = run(bench, SETTINGS.model_copy(update={"micro_batches": 4}), recipe=recipe)
    assert same(fitted.adapter, plain.adapter)
    whole = run(bench, recipe=recipe)
    for name, value in whole.adapter.state.items():
        torch.testing.assert_close(fitted.adapter.state[name], value, rtol=2e-3, atol=2e-4)


def test_memory_running_out_in_the_second_piece_loses_no_gradient(bench: Workbench) -> None:
    class Late(TorchEngine):
        """Fail once, in the second micro-batch of the second step, after the first one's backward pass."""

        calls = 0

        def logits(self, batch: Batch) -> torch.Tensor:
            self.calls += torch.is_grad_enabled()
            if self.calls == 4 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().logits(batch)

    recipe = Recipe(lr=5e-3, batch_size=16, epochs=1)
    two = SETTINGS.model_copy(update={"micro_batches": 2})
    late = fit(bench.spec(recipe=recipe), bench.model, bench.train, bench.validation, Late(), two)
    plain = run(bench, two, recipe=recipe)
    for name, value in plain.adapter.state.items():
        torch.testing.assert_close(late.adapter.state[name], value, rtol=2e-3, atol=2e-4)


def test_where_another_rank_runs_out_this_one_begins_the_step_again_with_it(bench: Workbench) -> None:
    class Neighbour(TorchEngine):
        """Hears once, at the second step, that another rank's memory ran out."""

        asked, restarts = 0, 0

        def any(self, mine: bool) -> bool:
            self.asked += 1
            return mine or self.asked == 2

        def restart(self, micro_batches: int) -> None:
            self.restarts += 1
            assert micro_batches == 2
            super().restart(micro_batches)

    recipe = Recipe(lr=5e-3, batch_size=16, epochs=1)
    engine = Neighbour()
    fitted = fit(bench.spec(recipe=recipe), bench.model, bench.train, bench.validation, engine, SETTINGS)
    assert engine.restarts == 1
    assert engine.asked == fitted.steps + 1
    plain = run(bench, recipe=recipe)
    for name, value in plain.adapter.state.items():
        torch.testing.assert_close(fitted.adapter.state[name], value, rtol=2e-3, atol=2e-4)


def test_one_sequence_too_many_is_an_error_with_a_remedy(bench: Workbench) -> None:
    with pytest.raises(LsatError, match=r"out of memory.*engine\.micro_batches"):
        fit(bench.spec(), bench.model, bench.train, bench.validation, Small(0), EngineConfig(kind="torch"))


def test_an_engine_that_cannot_repeat_a_step_says_how_many_micro_batches_to_begin_again_with(
    bench: Workbench, tmp_path: Path
) -> None:
    """DeepSpeed ended the run; a state of the fit brings its own number of micro-batches, which had not fitted."""

    class Rigid(Small):
        """A device whose room ends after some calls, under an engine that cannot repeat a step."""

        any = restart = None  # type: ignore[assignment]

        def logits(self, batch: Batch) -> torch.Tensor:
            self.room = 99 if len(self.sizes) < 2 else 9
            return super().logits(batch)

    spec = bench.spec(recipe=Recipe(lr=5e-3, batch_size=16, epochs=1))
    states = Checkpointer(tmp_path, 1)
    engine = Rigid(99)
    with pytest.raises(OutOfMemory, match=r"with 1 micro-batches a step; raise engine\.micro_batches") as caught:
        fit(spec, bench.model, bench.train, bench.validation, engine, SETTINGS, checkpoint=states)
    more = SETTINGS.model_copy(update={"micro_batches": caught.value.micro_batches})
    heard: list[str] = []
    fitted = fit(
        spec, bench.model, bench.train, bench.validation, engine, more, progress=heard.append, checkpoint=states
    )
    assert heard[0] == "resumed at step 2"
    plain = run(bench, recipe=spec.recipe)
    for name, value in plain.adapter.state.items():
        torch.testing.assert_close(fitted.adapter.state[name], value, rtol=2e-3, atol=2e-4)


def test_no_rank_scores_one_pass_more_than_the_others_where_weights_are_split(bench: Workbench) -> None:
    """Halving a batch is one more pass, in which the other ranks would never take part."""
    engine = TorchEngine()
    engine.splits = True
    engine.logits = lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA"))  # type: ignore[method-assign]
    with pytest.raises(LsatError, match=r"out of memory under ZeRO stage 3; lower engine\.batch_tokens"):
        sharded_margins(bench.model, engine, bench.train, 4096)


def test_scoring_halves_its_batches_too(bench: Workbench) -> None:
    from lsat_ray.scoring.score import margins

    sizes = []

    def logits(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bench.model(batch)

    index, value = margins(logits, bench.train, "cpu")
    assert max(s for s in sizes if s <= 7) >= 4
    reference = dict(zip(*margins(bench.model, bench.train, "cpu"), strict=True))
    assert sorted(index) == list(range(len(bench.train.row)))
    assert value == pytest.approx(np.array([reference[i] for i in index]), abs=2e-5)


def test_the_torch_engine_offers_both() -> None:
    assert isinstance(TorchEngine(), Resumable)
    assert isinstance(TorchEngine(), Elastic)
