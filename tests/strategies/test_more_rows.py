"""The rows beyond Table 2: what they train, what they share, what they are fitted on."""

from dataclasses import replace

import pytest

from lsat_ray.adapters.merge import PARAMETER_MERGES
from lsat_ray.adapters.spec import Frozen, Regulariser
from lsat_ray.config import Experiment, PesoConfig, ReplayConfig
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.generative.rules import LAMBDAS
from lsat_ray.scoring.model import CLASSICAL, FROZEN, IN_CONTEXT, OUTPUT_MERGES, RECLORA
from lsat_ray.strategies import CHOICE, STRATEGIES, Plan, Setting, make
from lsat_ray.strategies.cumulative import CUMULATIVE
from lsat_ray.strategies.evolving import EVOLVING
from lsat_ray.strategies.graph import needed
from lsat_ray.strategies.merged import MERGED


def setting(names: tuple[str, ...] = (), m: int = 10, samples: tuple[int, ...] = (1000,) * 20) -> Setting:
    return Setting("b", "d", Experiment(replay=ReplayConfig(long_periods=m), strategies=names), 0, samples)


def plan(name: str, t: int) -> Plan:
    found = STRATEGIES[name](setting()).plan(t)
    assert found is not None
    return found


def test_merges_train_nothing_that_the_ensemble_does_not() -> None:
    free = tuple(n for n in MERGED if n != "sml-merge")
    alone = {s.digest for s in needed(make(setting(("lsat-en",))), range(10, 20))}
    assert {s.digest for s in needed(make(setting(("lsat-en", *free))), range(10, 20))} == alone
    with_sml = {s.digest for s in needed(make(setting(("lsat-en", "sml-merge"))), range(10, 20))}
    assert len(with_sml - alone) == 2  # long(9) and short(9), on which period 10 is learned


@pytest.mark.parametrize(
    ("name", "row", "merge", "space", "candidates"),
    [
        ("lsat-delta", "lsat-delta(10)", "delta-arithmetic", "probability", 11),
        ("lsat-linear", "lsat-linear(10)", "peft-linear", "probability", 11),
        ("lsat-svd", "lsat-svd(10)", "svd", "probability", 11),
        ("lsat-ties", "lsat-ties(10)", "ties", "probability", 11),
        ("lsat-dare", "lsat-dare(10)", "dare", "probability", 11),
        ("lsat-prune", "lsat-prune(10)", "magnitude-prune", "probability", 11),
        ("lsat-en-logit", "lsat-en-logit(10)", "output-ensemble", "logit", 11),
        ("lsat-en-half", "lsat-en-half(10)", "output-ensemble", "probability", 1),
    ],
)
def test_merged_rows(name: str, row: str, merge: str, space: str, candidates: int) -> None:
    strategy = STRATEGIES[name](setting())
    made = plan(name, 14)
    assert (strategy.name, made.merge, made.space, len(made.grid)) == (row, merge, space, candidates)
    assert made.learned is None
    assert made.adapters == plan("lsat-en", 14).adapters


def test_the_fixed_ensemble_is_fixed() -> None:
    assert plan("lsat-en-half", 14).grid == ((0.5, 0.5),)


def test_learned_weights_are_fitted_on_the_validation_rows_of_t() -> None:
    made = plan("lsat-learned", 14)
    assert (made.merge, made.grid) == ("learned-delta", ())
    assert made.learned is not None
    assert made.learned.adapters == made.adapters == plan("lsat-en", 14).adapters
    assert made.learned.slices == (Slice(14, "validation"),)


def test_smls_protocol_learns_on_the_period_after_the_adapters_it_merges() -> None:
    assert "sml" not in STRATEGIES, "SML has a transfer net; this row has merge weights in its place"
    made = plan("sml-merge", 14)
    assert made.adapters == plan("lsat-en", 14).adapters
    assert made.learned is not None
    assert made.learned.adapters == plan("lsat-en", 13).adapters
    assert made.learned.slices == (Slice(14, "all"),)
    assert all(s.period < 14 for a in made.learned.adapters for s in (*a.train, *a.validation))
    first = plan("sml-merge", 1)
    assert (first.learned, first.merge, first.grid) == (None, "delta-arithmetic", ((0.5, 0.5),))


@pytest.mark.parametrize("name", sorted(EVOLVING))
def test_evolving_rows_are_fine_tuning_without_the_fall_back(name: str) -> None:
    one = plan(name, 6).adapters[0]
    (other,) = plan("fine-tuning", 6).adapters
    assert (one.train, one.validation, one.keep_old) == (other.train, other.validation, False)
    assert one.init is not None
    assert one.init == plan(name, 5).adapters[0]
    assert plan(name, 1).adapters == plan("full-retraining", 1).adapters
    assert one.frozen is None


def test_peso_and_its_controls_differ_in_the_penalty_alone() -> None:
    penalties = {name: [a.regulariser for a in plan(name, 6).adapters] for name in EVOLVING}
    assert penalties == {
        "single-evolving": [None],
        "peso": [Regulariser("softmax-kl", w, "sum") for w in LAMBDAS],
        "peso-mean": [Regulariser("softmax-kl", w, "mean") for w in LAMBDAS],
        "peso-l2": [Regulariser("l2", 2.0, "sum")],
        "peso-orthogonal": [Regulariser("orthogonal", 2.0, "sum")],
        "replay": [None],
    }
    assert {
        replace(a, regulariser=None, init=None).digest for n in EVOLVING for a in plan(n, 2).adapters if not a.replay
    } == {replace(plan("single-evolving", 2).adapters[0], init=None).digest}


def test_v_t_chooses_pesos_lambda_among_chains_that_keep_theirs() -> None:
    made = plan("peso", 6)
    assert (made.merge, made.grid) == (CHOICE, tuple((w,) for w in LAMBDAS))
    for link, weight in zip(made.adapters, LAMBDAS, strict=True):
        while link.init is not None:
            assert link.regulariser == Regulariser("softmax-kl", weight, "sum")
            link = link.init
        assert link == plan("full-retraining", 1).adapters[0]
    assert PesoConfig().lambdas == LAMBDAS, "both tasks try the authors' grid"


def test_the_lower_rate_is_that_of_links_under_a_penalty_and_of_no_other_row() -> None:
    """PESO trains D_1 at 2e-4 and later blocks at a tenth of it."""
    lower = replace(setting(), config=Experiment(peso=PesoConfig(later_lr=1e-4, lambdas=(2,))))
    for name in STRATEGIES:
        one, two = (STRATEGIES[name](s).plan(3) for s in (setting(), lower))
        if one is None or two is None:
            continue
        if not name.startswith("peso"):
            assert one.digest == two.digest
            continue
        (link,) = two.adapters
        assert (link.recipe.lr, link.init.recipe.lr, link.init.init.recipe.lr) == (1e-4, 1e-4, 1e-3)
        mine = next(a for a in one.adapters if a.regulariser == link.regulariser)
        assert link.recipe == mine.recipe.model_copy(update={"lr": 1e-4})


def test_replay_asks_for_half_a_period_and_for_its_size() -> None:
    spec = STRATEGIES["replay"](setting(samples=(1000, 1001, 600))).plan(3).adapters[0]
    assert spec.replay == 300
    assert spec.init is not None
    assert (spec.init.replay, spec.init.init.replay if spec.init.init else None) == (500, 0)
    with pytest.raises(LsatError, match=r"Setting\.samples"):
        STRATEGIES["replay"](setting(samples=())).plan(2)


@pytest.mark.parametrize("name", sorted(CUMULATIVE))
def test_cumulative_rows_freeze_what_came_before(name: str) -> None:
    (one,) = plan(name, 6).adapters
    chain = [plan(name, t).adapters[0] for t in range(1, 6)]
    assert one.frozen is not None
    latest = name.endswith("latest-inherit")
    assert one.frozen.adapters == tuple(chain[-1:] if latest else chain)
    assert one.init == (chain[-1] if latest else None)
    assert one.train == (Slice(6, "train"), Slice(5, "validation"))
    assert not one.keep_old
    full = plan("full-retraining", 1).adapters[0]
    assert chain[0] == (replace(full, frozen=Frozen((), "inf")) if name == "inf-lora" else full)


def test_cumulative_kinds() -> None:
    kinds = {name: plan(name, 3).adapters[0].frozen.kind for name in CUMULATIVE}  # type: ignore[union-attr]
    assert kinds == {
        "cumulative": "sum",
        "cumulative-latest-inherit": "sum",
        "sd-lora": "sd",
        "sd-lora-latest-inherit": "sd",
        "o-lora": "orthogonal",
        "inf-lora": "inf",
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_plan_can_be_carried_out(name: str) -> None:
    for t in (1, 2, 12):
        made = STRATEGIES[name](setting()).plan(t)
        if made is None:
            continue
        if made.merge == CHOICE:
            assert len(made.grid) == len(made.adapters) > 1
            continue
        assert made.merge in {"single", FROZEN, CLASSICAL, IN_CONTEXT, RECLORA, *OUTPUT_MERGES, *PARAMETER_MERGES}
        assert bool(made.grid) != bool(made.learned)
        assert (made.merge in ("single", CLASSICAL, RECLORA)) == (len(made.adapters) == 1)
        if made.adapters:
            assert all(len(w) == len(made.adapters) for w in made.grid)


def test_recency_is_full_retraining_under_other_weights() -> None:
    made = STRATEGIES["recency"](setting(samples=(1000, 2000, 9000))).plan(2)
    (full,) = plan("full-retraining", 2).adapters
    assert made is not None
    assert [a.half_life for a in made.adapters] == [1500.0, 3000.0, 6000.0, 12000.0], "D_3 is not known yet"
    assert {replace(a, half_life=None).digest for a in made.adapters} == {full.digest}
    assert all((a.train, a.validation) == (full.train, full.validation) for a in made.adapters)
