"""The seven rules of Table 2: exact rows, sharing, order, no look-ahead, stable names."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsat_ray.adapters.spec import AdapterSpec, Frozen, Reclora, Regulariser
from lsat_ray.config import (
    Experiment,
    GateConfig,
    LoraSettings,
    PromptConfig,
    Recipe,
    ReplayConfig,
    RetrieverConfig,
    SearchConfig,
)
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.strategies import STRATEGIES, Setting, make
from lsat_ray.strategies.graph import closure, needed
from lsat_ray.strategies.reclora import RECLORA_ROWS

TABLE_2 = ("full-retraining", "fine-tuning", "short-term", "long-term", "lsat-en", "lsat-en-full", "lsat-ta")
GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def setting(m: int = 10, seed: int = 0, names: tuple[str, ...] = TABLE_2) -> Setting:
    config = Experiment(replay=ReplayConfig(long_periods=m), strategies=names)
    return Setting(backbone="b", data="d", config=config, seed=seed, samples=(1000,) * 20)


def rows(*spans: tuple[str, int, int]) -> set[Slice]:
    return {Slice(i, part) for part, low, high in spans for i in range(low, high + 1)}  # type: ignore[arg-type]


def only(name: str, t: int, m: int = 10) -> AdapterSpec:
    (adapter,) = STRATEGIES[name](setting(m)).plan(t).adapters
    return adapter


@pytest.mark.parametrize("t", [1, 2, 7, 10, 19])
def test_full_retraining_reads_all_training_rows_and_the_validation_rows_before_t(t: int) -> None:
    spec = only("full-retraining", t)
    assert set(spec.train) == rows(("train", 1, t), ("validation", 1, t - 1))
    assert len(spec.train) == 2 * t - 1
    assert spec.validation == (Slice(t, "validation"),)
    assert (spec.init, spec.keep_old, spec.replay) == (None, False, 0)


@pytest.mark.parametrize("t", [2, 7, 19])
def test_fine_tuning_goes_on_from_the_link_before(t: int) -> None:
    spec = only("fine-tuning", t)
    assert spec.train == (Slice(t, "train"), Slice(t - 1, "validation"))
    assert spec.validation == (Slice(t, "validation"),)
    assert spec.keep_old
    assert spec.init is not None
    assert spec.init.digest == only("fine-tuning", t - 1).digest


def test_fine_tuning_begins_with_full_retraining_on_the_first_period() -> None:
    assert only("fine-tuning", 1).digest == only("full-retraining", 1).digest


@pytest.mark.parametrize("t", [1, 7, 19])
def test_short_term_reads_the_newest_training_rows_only(t: int) -> None:
    spec = only("short-term", t)
    assert spec.train == (Slice(t, "train"),)
    assert spec.validation == (Slice(t, "validation"),)
    assert spec.init is None


@pytest.mark.parametrize(("t", "m", "trained_at"), [(3, 10, 3), (10, 10, 10), (19, 10, 10), (19, 4, 4)])
def test_long_term_is_full_retraining_held_after_m(t: int, m: int, trained_at: int) -> None:
    assert only("long-term", t, m).digest == only("full-retraining", trained_at, m).digest


@pytest.mark.parametrize("t", [1, 10, 19])
def test_pairs_name_the_adapters_of_the_single_rows(t: int) -> None:
    long, short, full = (only(n, t).digest for n in ("long-term", "short-term", "full-retraining"))
    for name, expected in (
        ("lsat-en", (long, short)),
        ("lsat-ta", (long, short)),
        ("lsat-en-full", (full, short)),
    ):
        assert tuple(a.digest for a in STRATEGIES[name](setting()).plan(t).adapters) == expected


def test_merges_grids_and_row_names() -> None:
    made = dict(zip((*TABLE_2, "frozen"), make(setting(m=4)), strict=True))
    assert made["lsat-en"].name == "lsat-en(4)"
    assert made["lsat-ta"].name == "lsat-ta(4)"
    assert made["lsat-en-full"].name == "lsat-en(full)"
    plans = {name: strategy.plan(6) for name, strategy in made.items()}
    assert [plans[n].merge for n in TABLE_2] == ["single"] * 4 + ["output-ensemble"] * 2 + ["factor-arithmetic"]
    for name in ("lsat-en", "lsat-en-full", "lsat-ta"):
        assert plans[name].grid == tuple((w, round(1 - w, 10)) for w in GRID)
    assert plans["short-term"].grid == ((1.0,),)


def test_the_ensemble_averages_in_the_configured_space() -> None:
    config = Experiment(search=SearchConfig(space="logit", grid=(0.25,)))
    plan = STRATEGIES["lsat-en"](Setting("b", "d", config, 0)).plan(12)
    assert (plan.space, plan.grid) == ("logit", ((0.25, 0.75),))


def test_the_cadences_of_the_lsat_code_are_those_of_a_fresh_adapter_and_of_one_that_goes_on() -> None:
    """Its `full` mode validates every 23 steps with a patience of 10, its `tune` mode every 6 with 5."""
    recipe = Recipe(eval_every=50, patience=1, cadence="lsat")
    made = {s.name: s for s in make(Setting("b", "d", Experiment(recipe=recipe), 0))}
    found = {name: made[name].plan(3).adapters[0].recipe for name in ("full-retraining", "short-term", "fine-tuning")}
    pace = {name: (r.eval_every, r.evals_per_epoch, r.patience) for name, r in found.items()}
    assert pace == {"full-retraining": (23, None, 10), "short-term": (23, None, 10), "fine-tuning": (6, None, 5)}
    by_hand = recipe.model_copy(update={"cadence": "own", "eval_every": 23, "patience": 10})
    (own,) = STRATEGIES["full-retraining"](Setting("b", "d", Experiment(recipe=by_hand), 0)).plan(3).adapters
    assert own.digest == made["full-retraining"].plan(3).adapters[0].digest


def test_keys_of_a_recipe_that_came_later_leave_earlier_names_alone() -> None:
    manifest = STRATEGIES["short-term"](Setting("b", "d", Experiment(), 0)).plan(3).adapters[0].manifest()
    assert not {"loss", "cadence"} & set(manifest["recipe"])
    config = Experiment(recipe=Recipe(loss="language"))
    manifest = STRATEGIES["short-term"](Setting("b", "d", config, 0)).plan(3).adapters[0].manifest()
    assert manifest["recipe"]["loss"] == "language"


def test_table_2_needs_39_trainings_not_82() -> None:
    strategies = make(setting())
    specs = needed(strategies, range(10, 20))
    digests = [s.digest for s in specs]
    assert len(set(digests)) == len(digests) == 39
    # ten full, nineteen links of which the first is full(1), ten short; long is full(10)
    assert sum(s.init is not None for s in specs) == 18
    assert sum(len(s.train) == 1 for s in specs) == 11
    assert sum(len(needed([s], range(10, 20))) for s in strategies) == 82  # each row for itself


@given(st.permutations(TABLE_2), st.lists(st.integers(1, 20), min_size=1, max_size=4))
@settings(max_examples=30)
def test_parents_come_first_whatever_is_asked_for(names: list[str], periods: list[int]) -> None:
    seen: set[str] = set()
    for spec in needed(make(setting(names=tuple(names[:4]))), periods):
        assert all(p.digest in seen for p in spec.parents())
        assert spec.digest not in seen
        seen.add(spec.digest)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_plan_reads_past_its_period(name: str) -> None:
    for m in (1, 3, 10):
        strategy = STRATEGIES[name](setting(m))
        for t in (7, 1, 2, 12, 3):  # out of order: a rule has no memory of what was asked
            plan = strategy.plan(t)
            if plan is None:
                continue
            assert all(s.last_period <= t for s in closure(plan.specs()))
            assert all(s.period <= t for s in (plan.learned.slices if plan.learned else ()))
            assert [a.digest for a in STRATEGIES[name](setting(m)).plan(t).adapters] == [
                a.digest for a in plan.adapters
            ]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_seed_names_other_adapters(name: str) -> None:
    one, two = (STRATEGIES[name](setting(seed=s)).plan(5) for s in (0, 1))
    if one is None or two is None:  # a derived row has no adapters
        return
    assert {a.digest for a in one.adapters}.isdisjoint(a.digest for a in two.adapters)


def test_row_names_are_distinct() -> None:
    names = [s.name for s in make(setting(names=tuple(STRATEGIES)))]
    assert len(set(names)) == len(names) == len(STRATEGIES)


def test_an_unknown_strategy_is_named_with_the_known_ones() -> None:
    with pytest.raises(LsatError, match=r"'lsat-xy' is unknown; known are full-retraining"):
        make(setting(names=("lsat-xy",)))


# -- names of adapters ------------------------------------------------------------------------------------------------

PARENT = AdapterSpec(
    backbone="b",
    data="d",
    train=(Slice(1, "train"),),
    validation=(Slice(1, "validation"),),
    prompt=PromptConfig(),
    lora=LoraSettings(),
    recipe=Recipe(),
    seed=0,
)
BASE = replace(PARENT, train=(Slice(2, "train"), Slice(1, "validation")))
slices = st.lists(
    st.builds(Slice, st.integers(1, 20), st.sampled_from(["train", "validation", "all"])), min_size=1, max_size=5
).map(tuple)
weights = st.floats(0.001, 100)
VALUES: dict[str, st.SearchStrategy] = {
    "backbone": st.text(max_size=5),
    "data": st.text(max_size=5),
    "train": slices,
    "validation": slices,
    "prompt": st.builds(PromptConfig, item_word=st.sampled_from(["movie", "book"]), max_tokens=st.integers(32, 600)),
    "lora": st.builds(LoraSettings, rank=st.integers(1, 32), alpha=weights, dropout=st.sampled_from([0.0, 0.05])),
    "recipe": st.builds(Recipe, lr=st.floats(1e-6, 1), epochs=st.integers(1, 9), patience=st.integers(1, 9)),
    "seed": st.integers(0, 1000),
    "init": st.one_of(st.none(), st.just(PARENT), st.just(replace(PARENT, seed=5))),
    "keep_old": st.booleans(),
    "regulariser": st.one_of(
        st.none(),
        st.builds(
            Regulariser,
            kind=st.sampled_from(["softmax-kl", "l2", "orthogonal"]),
            weight=weights,
            reduction=st.sampled_from(["sum", "mean"]),
        ),
    ),
    "frozen": st.one_of(
        st.none(),
        st.builds(
            Frozen,
            adapters=st.sampled_from([(PARENT,), (PARENT, replace(PARENT, seed=5)), (replace(PARENT, seed=5),)]),
            kind=st.sampled_from(["sum", "sd", "orthogonal", "inf"]),
            weight=weights,
        ),
    ),
    "replay": st.integers(0, 1000),
    "half_life": st.one_of(st.none(), weights),
    "reclora": st.one_of(
        st.none(),
        st.builds(
            Reclora,
            rows=st.one_of(st.none(), st.integers(1, 9)),
            retriever=st.one_of(st.none(), st.builds(RetrieverConfig, events=st.integers(1, 9))),
            gate=st.one_of(st.none(), st.builds(GateConfig, members=st.integers(2, 9))),
            recommender=st.sampled_from([None, PARENT]),
        ),
    ),
}


def test_every_field_is_covered() -> None:
    assert VALUES.keys() == {f.name for f in fields(AdapterSpec)}


@given(st.data())
@settings(max_examples=300)
def test_a_digest_changes_with_any_field_and_with_nothing_else(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(VALUES)))
    value = data.draw(VALUES[name])
    other = replace(BASE, **{name: value})
    assert (other.digest == BASE.digest) == (value == getattr(BASE, name))
    assert replace(other).digest == other.digest


def test_specs_compare_and_hash_by_digest_however_long_the_chain() -> None:
    """Field by field, a chain whose links name two parents each would take 2^t steps."""

    def chain() -> AdapterSpec:
        spec = PARENT
        for i in range(60):
            spec = replace(BASE, seed=i, init=spec, frozen=Frozen((spec,), "sum"))
        return spec

    one, two = chain(), chain()
    assert one == two
    assert len({one, two}) == 1
    assert one != replace(two, seed=1)
    assert one.digest[:12] in repr(one)
    assert len(repr(one)) < 400


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from lsat_ray.strategies import STRATEGIES, Setting; from lsat_ray.config import Experiment;"
        "s = Setting('b', 'd', Experiment(), 3); print(STRATEGIES['fine-tuning'](s).plan(4).adapters[0].digest)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = STRATEGIES["fine-tuning"](Setting("b", "d", Experiment(), 3)).plan(4).adapters[0].digest
    assert there == here


def test_the_ablations_of_reclora_differ_in_one_part_each() -> None:
    found = {n: STRATEGIES[n](setting()).plan(3).adapters[0] for n in RECLORA_ROWS}  # type: ignore[union-attr]
    parts = {n: s.reclora for n, s in found.items()}
    whole = parts["reclora"]
    assert whole.recommender.last_period == 3
    assert replace(parts["reclora-no-gate"], gate=whole.gate, recommender=whole.recommender) == whole
    assert replace(parts["reclora-no-retriever"], retriever=whole.retriever) == whole
    assert parts["reclora-no-retriever"].retriever.order == "recent"
    assert replace(parts["reclora-no-few2many"], recommender=whole.recommender) == whole
    assert parts["reclora-no-few2many"].recommender.rows == whole.rows, "the recommender sees the few rows, too"
    assert replace(parts["reclora-factors"], gate=whole.gate) == whole
    assert len({s.digest for s in found.values()}) == len(RECLORA_ROWS)
    (full,) = STRATEGIES["full-retraining"](setting()).plan(3).adapters  # type: ignore[union-attr]
    assert {replace(s, reclora=None).digest for s in found.values()} == {full.digest}
