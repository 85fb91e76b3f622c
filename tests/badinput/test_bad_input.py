"""Bad input by the thousand: each ends in one `LsatError` of one line, or is read; nothing is half written.

A few hundred in `make test`; `make test-slow` draws 10,000. A failure names its seed.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lsat_ray import config as configs
from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.config import Experiment, LoraSettings, PromptConfig, Recipe
from lsat_ray.data.periods import Slice
from lsat_ray.errors import LsatError
from lsat_ray.report.reader import RunReader
from lsat_ray.runs.check import check
from lsat_ray.runs.folder import RunFolder
from lsat_ray.runs.ledger import Ledger
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served, heal, read_current, write_current
from tests.badinput.mutate import damage, twist

FEW, MANY = 60, 1250
"""Cases per subject in `make test`, and in the long target: eight subjects are 10,000 cases."""
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))
Step = Callable[[random.Random], None]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def many(cases: range, spoil: Step, use: Step, folder: Path) -> None:
    """Try every case: what was spoilt can be used, or is refused with one clear line and the folder stays as it is."""
    refused = 0
    for case in cases:
        chance = random.Random(case)
        spoil(chance)
        before = contents(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(chance)
        except LsatError as error:
            refused += 1
            text = str(error)
            assert 10 < len(text) < 1500 and "\n" not in text and "Traceback" not in text, (case, text)
            assert contents(folder) == before, f"case {case}: something was written"
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {str(error)[:500]}") from error
    assert refused > len(cases) / 20, f"only {refused} of {len(cases)} were refused: the damage does not reach"


@pytest.fixture(
    params=[pytest.param((0, FEW), id="few"), pytest.param((1000, 1000 + MANY), marks=pytest.mark.slow, id="many")]
)
def cases(request: pytest.FixtureRequest) -> range:
    return range(*request.param)


# logs

TITLES = [f"Film {i} (19{i:02d})" for i in range(15)]
EVENTS = [(u, i, 1 + (u * i) % 5, 1000 * i + u) for u in range(8) for i in range(15)]
LOGS: dict[str, tuple[dict[str, str], list[str]]] = {
    "latest": (
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in EVENTS),
            "movies.csv": "movieId,title,genres\n" + "".join(f"{i},{t},Drama\n" for i, t in enumerate(TITLES)),
        },
        ["data.format=movielens"],
    ),
    "ml-1m": (
        {
            "ratings.dat": "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in EVENTS),
            "movies.dat": "".join(f"{i}::{t}::Drama\n" for i, t in enumerate(TITLES)),
        },
        ["data.format=movielens"],
    ),
    "recbole": (
        {
            "log.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            + "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in EVENTS),
            "log.item": "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(TITLES)),
        },
        ["data.format=recbole"],
    ),
    "amazon": (
        {
            "reviews.json": "".join(
                json.dumps({"reviewerID": f"u{u}", "asin": f"a{i}", "overall": float(r), "unixReviewTime": t}) + "\n"
                for u, i, r, t in EVENTS
            ),
            "meta_books.json": "".join(json.dumps({"asin": f"a{i}", "title": t}) + "\n" for i, t in enumerate(TITLES)),
        },
        ["data.format=amazon"],
    ),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LOGS)
def test_rows_of_a_log(name: str, cases: range, tmp_path: Path) -> None:
    files, sets = LOGS[name]
    sets = [*sets, f"data.path={tmp_path / 'reviews.json' if name == 'amazon' else tmp_path}"]
    sets += [f"data.metadata={tmp_path / 'meta_books.json'}"] if name == "amazon" else []
    sets += ["periods.number=3", "replay.long_periods=1", "data.history=3", "backbone.device=cpu"]
    config = configs.load(None, sets)
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert check(config).periods.count == 3, "the undamaged log is read"

    def spoil(chance: random.Random) -> None:
        file = chance.choice([*files, next(iter(files))])
        for other, text in files.items():
            (tmp_path / other).write_text(text)
        (tmp_path / file).write_bytes(damage(files[file].encode(), chance))

    def use(chance: random.Random) -> None:
        check(config)

    many(cases, spoil, use, tmp_path)


# configs


@pytest.mark.timeout(3600)
def test_configs(cases: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ML1M", "ML_LATEST_SMALL", "AMAZON_BOOK", "PESO"):
        monkeypatch.setenv(variable, str(tmp_path))
    texts = [path.read_text() for path in CONFIGS]
    file = tmp_path / "mine.yaml"

    def spoil(chance: random.Random) -> None:
        text = chance.choice(texts)
        if chance.random() < 0.5:
            file.write_bytes(damage(text.encode(), chance))
        else:
            whole = {**Experiment().model_dump(mode="json"), **yaml.safe_load(text)}
            file.write_text(yaml.safe_dump(twist(whole, chance), allow_unicode=True))

    def use(chance: random.Random) -> None:
        read = configs.load(file, [damage(b"recipe.lr=0.1", chance).decode("latin-1")] if chance.random() < 0.2 else ())
        file.write_text(read.to_yaml())
        assert configs.load(file) == read or "nan" in read.to_yaml()

    many(cases, spoil, use, tmp_path)


# what a run has written


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder: config, ledger, what is served, and two adapters."""
    config = Experiment(name="run")
    folder = RunFolder(tmp_path, config)
    folder.open()
    folder.close()
    ledger = Ledger(folder.path / "ledger.jsonl")
    for t in range(1, 4):
        ledger.append(0, "lsat-en(2)", t, "search", digest="ab" * 32, weights=[0.5, 0.5], adapters=["cd" * 32])
        ledger.append(0, "lsat-en(2)", t, "score", auc=0.5, auc_low=float("nan"), rows=60)
    store, digests = AdapterStore(folder.adapters), []
    for seed in range(2):
        lora = LoraSettings(rank=2, alpha=4)
        spec = AdapterSpec("b" * 64, "d" * 64, (Slice(1, "train"),), (Slice(1, "validation"),), PromptConfig(), lora,
                           Recipe(), seed)  # fmt: skip
        state = {f"base_model.model.q_proj.lora_{k}.weight": torch.ones(2, 2) for k in "AB"}
        store.publish(spec, Adapter(state, 2, 4.0), {"auc": 0.5}, "base", (np.arange(3), np.ones(3, np.float32)))
        digests.append(spec.digest)
    model = Model("lsat-en(2)", 2, "output-ensemble", tuple(digests), (0.5, 0.5))
    write_current(folder.path, Served(2, (model,)))
    return folder.path


@pytest.mark.timeout(3600)
def test_ledgers(cases: range, run: Path) -> None:
    file = run / "ledger.jsonl"
    whole = file.read_bytes()

    def spoil(chance: random.Random) -> None:
        if chance.random() < 0.5:
            file.write_bytes(damage(whole, chance))
        else:
            lines = [json.loads(line) for line in whole.splitlines()]
            at = chance.randrange(len(lines))
            lines[at] = twist(lines[at], chance)
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def use(chance: random.Random) -> None:
        ledger = Ledger(file)
        ledger.append(0, "fine-tuning", 9, "score", auc=0.5)
        assert Ledger(file).records() == ledger.records() or b"NaN" in file.read_bytes()
        assert isinstance(RunReader(run).ledger, list)

    many(cases, spoil, use, run)


@pytest.mark.timeout(3600)
def test_adapter_folders(cases: range, run: Path) -> None:
    store = AdapterStore(run / "adapters")
    digest = store.digests()[0]
    folder = store.path(digest)
    whole = contents(folder)
    loaded = store.load(digest)

    def spoil(chance: random.Random) -> None:
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        name = chance.choice(list(whole))
        kind = chance.randrange(4)
        if kind == 0:
            (folder / name).unlink()
        elif kind == 1 or not name.endswith(".json"):
            (folder / name).write_bytes(damage(whole[name], chance))
        else:
            (folder / name).write_text(json.dumps(twist(json.loads(whole[name]), chance), indent=2, sort_keys=True))

    def use(chance: random.Random) -> None:
        usable = store.usable(digest)
        found = store.load(digest)
        assert usable and found.rank == loaded.rank and found.alpha == loaded.alpha
        assert all(torch.equal(found.state[k], v) for k, v in loaded.state.items())
        rows, _ = store.validation(digest)
        assert rows.tolist() == [0, 1, 2]

    many(cases, spoil, use, run)


@pytest.mark.timeout(3600)
def test_what_is_served(cases: range, run: Path) -> None:
    """A broken `current.json` is one line where it is read, and is mended by the run itself."""
    file = run / "current.json"
    whole = file.read_bytes()
    store = AdapterStore(run / "adapters")

    def spoil(chance: random.Random) -> None:
        if chance.random() < 0.5:
            file.write_bytes(damage(whole, chance))
        else:
            file.write_text(json.dumps(twist(json.loads(whole), chance)))

    def use(chance: random.Random) -> None:
        try:
            read_current(run)
        finally:
            broken = file.read_bytes()
            heal(run, store)
            assert read_current(run) is not None
            file.write_bytes(broken)

    many(cases, spoil, use, run)
