"""The config tree: typed, frozen, and with errors that name the key and the remedy."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from lsat_ray import config, data
from lsat_ray.errors import LsatError
from lsat_ray.runs.check import check
from lsat_ray.strategies import STRATEGIES, make

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_open_with_their_command(path: Path) -> None:
    assert config.load(path).name == path.stem
    head = path.read_text().split("name:")[0]
    assert "python jobs/" in head or "lsat-ray " in head


@pytest.mark.parametrize("name", ["ml1m_llama7b", "amazon_book_llama7b"])
def test_the_papers_configs_have_its_settings_and_list_what_departs(name: str) -> None:
    (path,) = (p for p in CONFIGS if p.stem == name)
    found = config.load(path)
    assert (found.recipe.cadence, found.search.space, found.recipe.select) == ("lsat", "double-softmax", "auc")
    assert found.search.select == "auc"
    head = " ".join(path.read_text().split("name:")[0].replace("#", "").split())
    for departure in ("bfloat16", "recipe.loss=language", "whole vocabulary", "from 0 to 1", "512 tokens", "schedule"):
        assert departure in head, departure


OF_PAPERS = ["ml1m_llama7b", "amazon_book_llama7b", "peso_video_games", "peso_cds", "peso_synthetic"]
OF_PAPERS += ["reclora_ml_latest_small", "tallrec_few_shot"]


@pytest.mark.parametrize("name", OF_PAPERS)
def test_the_head_of_a_papers_method_lists_what_departs(name: str) -> None:
    (path,) = (p for p in CONFIGS if p.stem == name)
    head = path.read_text().split("name:")[0]
    assert "# Departures from" in head


def test_one_shipped_config_names_every_strategy() -> None:
    (path,) = (p for p in CONFIGS if p.stem == "all_strategies")
    assert config.load(path).strategies == tuple(STRATEGIES)


def test_every_strategy_has_its_row_in_a_committed_table() -> None:
    (path,) = (p for p in CONFIGS if p.stem == "all_strategies")
    rows = [strategy.name for strategy in make(check(config.load(path)).setting("", 0))]
    table = pd.read_csv(path.parents[2] / "benchmarks" / "results" / "all_strategies" / "table2.csv")
    assert set(rows) - set(table["strategy"]) == set()


def test_resolved_yaml_reads_back_the_same(tmp_path: Path) -> None:
    experiment = config.load(None, ["recipe.lr=0.002", "seeds=[1, 2]", "lora.targets=[q_proj]"])
    path = tmp_path / "resolved.yaml"
    path.write_text(experiment.to_yaml())
    assert config.load(path) == experiment


def test_a_misspelt_key_is_named_with_its_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("recipe:\n  learning_rate: 1\n  epoch: 2\n")
    with pytest.raises(LsatError, match=r"a\.yaml: .*key `recipe\.epoch` is unknown; did you mean `epochs`\?"):
        config.load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.lr=-1", "key `recipe.lr`: .*greater than 0"),
        ("recipe.lr=fast", "key `recipe.lr`"),
        ("recipe", "expected section.key=value"),
        ("name.a=1", "`name` is a value, not a section"),
        ("data.format=csv", "key `data.format`"),
        ("data.format=movielens", "data.path: missing"),
        ("replay.long_periods=40", "replay.first_test: 41 is past the last period"),
        ("recipe.epochs=[", "not YAML"),
        ("search.grid=[]", "key `search.grid`: .*at least 1 item"),
        ("search.grid=[0.0, 2.0]", "key `search.grid.1`: .*less than or equal to 1"),
        ("search.grid=[-0.1]", "key `search.grid.0`: .*greater than or equal to 0"),
        ("search.grid=[0.5, 0.2, 0.5]", "key `search.grid`: a weight occurs twice"),
        ("data.duplicates=ignore", "key `data.duplicates`: .*'drop', 'keep' or 'refuse'"),
    ],
)
def test_bad_values_name_key_and_remedy(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\n")
    with pytest.raises(LsatError, match=message):
        config.load(path, [override])


def test_the_loss_of_the_whole_text_is_refused_where_prompts_share_a_sequence() -> None:
    assert config.load(None, ["recipe.loss=language"]).prompt.layout == "exact"
    with pytest.raises(LsatError, match=r"recipe\.loss: language is a loss of one prompt; prompt\.layout is stream"):
        config.load(None, ["recipe.loss=language", "prompt.layout=stream"])


def test_missing_file_and_broken_yaml_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(LsatError, match=r"none\.yaml: no such config"):
        config.load(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(LsatError, match=r"broken\.yaml: not YAML"):
        config.load(path)


def test_the_tree_is_frozen_and_every_field_is_explained() -> None:
    experiment = config.Experiment()
    with pytest.raises(ValueError, match="frozen"):
        experiment.recipe.lr = 1.0  # type: ignore[misc]
    for section in config.Node.__subclasses__():
        for name, field in section.model_fields.items():
            node = isinstance(field.annotation, type) and issubclass(field.annotation, config.Node)
            assert field.description or node or name == "seed", f"{section.__name__}.{name} has no line of its own"


def test_unset_variables_in_a_path_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_LOG", raising=False)
    with pytest.raises(LsatError, match="environment variable in it is not set"):
        data.expand("$SOME_LOG/ratings.csv")


def test_yaml_has_no_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(LsatError, match="not YAML"):
        config.load(path)
    assert yaml.safe_load("a: 1") == {"a": 1}
