"""The naive rows: their definition, their honesty, and the reference figures."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lsat_ray.baselines.naive import NAMES, naive_scores, oracle_scores
from lsat_ray.config import DataConfig, PeriodsConfig, SyntheticConfig
from lsat_ray.data import load, synthetic
from lsat_ray.data.periods import cut
from lsat_ray.data.windows import Samples, windows
from lsat_ray.errors import LsatError

FIGURES = {
    "like-share": ".772 .728 .743 .706 .718 .710 .756 .739 .780 .678 .765 .723 .783 .725 .834 .818 .793 .738 .866 .867",
    "item-rate": ".639 .715 .684 .692 .684 .658 .728 .648 .683 .682 .586 .624 .665 .665 .677 .607 .727 .633 .723 .664",
    "like-share+item-rate": (
        ".794 .770 .774 .750 .752 .752 .802 .764 .817 .731 .771 .738 .800 .752 .845 .824 .821 .754 .879 .878"
    ),
}
"""AUC of 20 periods of 2,000 samples on MovieLens latest-small."""


@pytest.fixture(scope="module")
def samples() -> Samples:
    return windows(synthetic.generate(SyntheticConfig(users=30, items=20, warmup=300), 500, 10), 10)


def test_scores_are_the_definition_sample_by_sample(samples):
    scores = naive_scores(samples, 300)
    likes, count = np.zeros(20), np.zeros(20)
    for n in range(len(samples)):
        seen = samples.label[: min(n, 300)]
        base = seen.mean() if len(seen) else 0.5
        item = samples.item[n]
        rate = (likes[item] + 1 + 3 * base) / (count[item] + 5)
        share = samples.history_label[n].sum() / 10
        expected = dict(zip(NAMES, (share, rate, share + rate), strict=True))
        for name in NAMES:
            assert scores[name][n] == pytest.approx(expected[name], abs=1e-12)
        likes[item] += samples.label[n]
        count[item] += 1


@pytest.mark.parametrize("at", [0, 150, 300, 450])
def test_no_score_sees_its_own_or_a_later_label(samples, at):
    label = samples.label.copy()
    label[at:] = 1 - label[at:]
    columns = {f: getattr(samples, f) for f in samples.__dataclass_fields__}
    changed = naive_scores(Samples(**(columns | {"label": label})), 300)
    for name, score in naive_scores(samples, 300).items():
        assert (score[: at + 1] == changed[name][: at + 1]).all()
    assert (naive_scores(samples, 300)["item-rate"] != changed["item-rate"]).any()


def test_a_warmup_that_is_no_number_of_rows_is_an_error(samples):
    for warmup in (-1, len(samples) + 1):
        with pytest.raises(LsatError, match="warm-up"):
            naive_scores(samples, warmup)


def test_the_oracles_are_rows_and_unknown_for_real_logs(samples):
    scores = oracle_scores(samples)
    assert list(scores) == ["oracle", "oracle-long", "oracle-short", "oracle-mixture"]
    assert (scores["oracle"] == samples.probability).all()
    assert (scores["oracle-short"] == samples.oracles[:, 1]).all()
    assert oracle_scores(replace(samples, probability=None, oracles=None)) == {}


@pytest.mark.data
@pytest.mark.skipif("LSAT_RAY_DATA" not in os.environ, reason="LSAT_RAY_DATA does not point at real logs")
def test_reference_figures_of_latest_small():
    data = DataConfig(format="movielens", path="$LSAT_RAY_DATA/ml-latest-small", positive_above=3.5, keep_last=40_000)
    periods = cut(load(data), data, PeriodsConfig(number=20))
    scores = naive_scores(periods.samples, periods.borders[0])
    for name, figures in FIGURES.items():
        spans = [periods.span(t) for t in range(1, 21)]
        found = [roc_auc_score(periods.samples.label[s], scores[name][s]) for s in spans]
        assert np.abs(np.array(found) - [float(f) for f in figures.split()]).max() <= 0.00051
