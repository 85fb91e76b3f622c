"""The report of a fabricated run: whole, self-contained, the same twice, and honest about what is missing."""

import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lsat_ray import report
from lsat_ray.errors import LsatError
from lsat_ray.report import figures, study, style, tables
from lsat_ray.report.reader import RunReader

FIGURES = (
    "auc_per_period",
    "differences",
    "coefficients",
    "learning_curves",
    "cost_per_period",
    "wall_clock",
    "frontier",
)
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what a browser would fetch, the ids, and whether tags close in order."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.open, self.tags, self.text = [], [], [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster") and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(path):
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def built(whole_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("built") / "run"
    shutil.copytree(whole_run, run)
    assert report.write(run) == run / "report.html"
    return run


def test_the_kept_table_is_the_one_that_the_terminal_would_compute(built):
    run = RunReader(built)
    kept = pd.read_csv(built / report.TABLE).fillna({"verdict": ""})
    pd.testing.assert_frame_equal(kept, tables.mean_auc(run.metrics, run.scores), check_dtype=False)


def test_a_report_without_figures_has_its_tables(built, strategies, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(built, run, ignore=shutil.ignore_patterns("figures", "report.html"))
    text = report.write(run, draw=False).read_text()
    assert not (run / "figures").exists()
    assert "<svg" not in text
    assert all(strategy in text for strategy in strategies)


def test_every_strategy_and_every_part_is_there(built, strategies):
    page = parse(built / "report.html")
    for strategy in strategies:
        assert strategy in page.text
    for title in ("Mean AUC", "AUC per period", "Chosen coefficients", "Cost per period", "Wall-clock account"):
        assert title in page.text
    assert "lsat-en(10) has the highest mean AUC" in page.text
    assert re.search(r"Goodput \d\d\.\d%", page.text)
    assert "numpy" in page.text
    assert "Left out" not in page.text


def test_nothing_is_fetched_and_no_two_figures_share_an_id(built):
    page = parse(built / "report.html")
    text = (built / "report.html").read_text()
    assert page.fetched == []
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.tags.isdisjoint({"script", "iframe", "link", "img", "object", "embed"})
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert target in page.ids


def test_text_from_the_run_is_escaped(built):
    assert "&lt;script&gt;alert(" in (built / "report.html").read_text()


def test_a_strategy_name_that_is_markup_stays_text(built, tmp_path):
    bad = "<img src=x onerror=alert(1)>&"
    frame = pd.read_parquet(built / "metrics.parquet")
    frame["strategy"] = frame["strategy"].replace("short-term", bad)
    frame.to_parquet(tmp_path / "metrics.parquet")
    page = parse(report.write(tmp_path))
    assert "img" not in page.tags
    assert bad in page.text


def test_figures_are_svg_and_png_with_their_data(built):
    for name in FIGURES:
        ElementTree.parse(built / "figures" / f"{name}.svg")
        assert (built / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(built / "figures" / f"{name}.csv")) > 1
    metrics = pd.read_parquet(built / "metrics.parquet")
    data = pd.read_csv(built / "figures" / "auc_per_period.csv")
    np.testing.assert_allclose(data["auc"], metrics["auc"], rtol=1e-5)


def test_the_same_run_gives_the_same_bytes(built, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(built, again, ignore=shutil.ignore_patterns("figures", "report.html"))
    report.write(again)
    names = ["report.html", *(f"figures/{n}.{s}" for n in FIGURES for s in ("svg", "png", "csv"))]
    assert [n for n in names if (again / n).read_bytes() != (built / n).read_bytes()] == []


@pytest.mark.parametrize(
    "gone",
    [
        {
            "metrics.parquet": "no metrics.parquet",
            "search": "no search/coefficients.parquet",
            "adapters": "no adapter's manifest",
        },
        {"timings.parquet": "no timings.parquet", "config.resolved.yaml": "no config.resolved.yaml"},
        {
            "scores": "scores of full-retraining and of another strategy are needed",
            "versions.json": "no versions.json",
            "ledger.jsonl": "neither timings nor ledger say",
        },
    ],
)
def test_what_is_missing_is_left_out_and_said(built, tmp_path, gone):
    run = tmp_path / "run"
    shutil.copytree(built, run, ignore=shutil.ignore_patterns("figures", "report.html", *gone))
    text = parse(report.write(run)).text
    for said in gone.values():
        assert said in text
    assert text.count("Left out") >= len(gone)


def test_an_empty_folder_has_a_report_too(tmp_path):
    text = parse(report.write(tmp_path)).text
    assert "No strategy was measured." in text
    assert text.count("Left out") >= 5


def test_no_folder_is_an_error_that_says_so(tmp_path):
    with pytest.raises(LsatError, match="no such run folder"):
        report.write(tmp_path / "nowhere")


def test_one_period_and_one_strategy_are_enough(tmp_path):
    row = {"strategy": ["frozen"], "period": [2], "seed": [0], "auc": [0.6]}
    pd.DataFrame(row).to_parquet(tmp_path / "metrics.parquet")
    assert "frozen has the highest mean AUC, .6000 (1 tested period, 1 seed)" in parse(report.write(tmp_path)).text


def test_drawing_leaves_the_settings_of_the_process_alone(built, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    shutil.copy(built / "metrics.parquet", tmp_path)
    report.write(tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_names_at_line_ends_keep_apart_and_in_order():
    places = style._apart([0.1, 0.11, 0.11, 0.5, 0.52], 0.05)
    assert (np.diff(places) >= 0.05 - 1e-9).all()
    assert places[1] == pytest.approx(np.mean([0.1, 0.11, 0.11]))
    assert style._apart([0.1, 0.5], 0.05) == [0.1, 0.5]


def test_names_at_line_ends_stay_beside_the_axes():
    places = style._apart([0.97, 0.98, 0.99], 0.05)
    assert places == pytest.approx([0.9, 0.95, 1.0])
    assert style._apart([0.0, 0.01], 0.05) == pytest.approx([0.0, 0.05])


def test_a_crowd_of_strategies_is_drawn_as_tiles_with_every_name():
    names = ["full-retraining", "frozen", *(f"new-{i}" for i in range(20))]
    rows = [(s, t, 0, 0.7 + 0.001 * i) for i, s in enumerate(names) for t in (11, 12, 13)]
    drawn = figures.auc_per_period(pd.DataFrame(rows, columns=["strategy", "period", "seed", "auc"]))
    written = " ".join(text.get_text() for axes in drawn.figure.axes for text in axes.texts)
    for name in names:
        assert name in written
    assert "+.0210  new-19" in written


def test_strategies_look_different(strategies):
    looks = {tuple(style.look(s, i).items()) for i, s in enumerate(strategies)}
    assert len(looks) == len(strategies)


def test_learning_curves_show_every_adapter_by_kind_and_who_was_cut_short(whole_run):
    manifests = RunReader(whole_run).manifests
    drawn = figures.learning_curves(manifests)
    titles = [axes.get_title(loc="left") for axes in drawn.figure.axes]
    assert titles == [
        "continued: 5 adapters, 5 stopped by patience",
        "fresh, one period: 5 adapters, 5 stopped by patience",
        "fresh, several periods: 5 adapters, 3 stopped by patience",
    ]
    assert drawn.data["digest"].nunique() == len(manifests)
    kept = drawn.data[drawn.data["best"]].groupby("digest")["step"].first()
    assert kept.to_dict() == {m["digest"]: m["facts"]["best_step"] for m in manifests}


def test_an_adapter_without_validation_auc_has_no_learning_curve():
    one = {
        "digest": "a",
        "spec": {"train": [[1, "train"]]},
        "facts": {"history": [(1, 0.7, -0.69)]},
    }  # one class: a loss
    assert figures.learning_curves([one]) is None
    assert figures.learning_curves([{"digest": "b", "spec": {"kind": "classical", "model": "mf"}, "facts": {}}]) is None


def test_the_noise_floor_stands_under_the_tables(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    table = study.table2(
        RunReader(run).metrics, {}, pd.DataFrame(columns=["strategy", "trainings", "training_seconds"])
    )
    study.write(run, table2=table)
    text = parse(report.write(run, noise=0.004)).text
    assert text.count("Differences below .0040 are not differences (noise floor: ") == 2
    assert "below the noise floor (" in text
    assert "noise floor" not in parse(report.write(run)).text
