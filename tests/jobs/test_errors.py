"""Bad input at the door: one clear line, exit status 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.stream_replay import app

HEADER = "userId,movieId,rating,timestamp\n"
RATINGS = "".join(f"{u},{i},{3 + i % 3},{1000 * i + u}\n" for u in range(1, 9) for i in range(1, 16))
MOVIES = "movieId,title,genres\n" + "".join(f"{i},Film {i} (1999),Drama\n" for i in range(1, 16))


def job(folder: Path, *sets: str, config: str = "") -> Result:
    """Run the replay's command; bad input must end it before it needs a cluster."""
    file = folder / "bad.yaml"
    file.write_text(config or "name: bad\n")
    options = [part for s in sets for part in ("--set", s)]
    return CliRunner().invoke(app, ["--config", str(file), "--runs-dir", str(folder / "runs"), *options])


def refused(done: Result, folder: Path, *words: str) -> None:
    """Check that the job ended with one line that holds the words, and left nothing."""
    assert done.exit_code == 2, (done.output, done.exception)
    errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.output
    for word in words:
        assert word in errors[0], errors[0]
    assert not (folder / "runs").exists()


def log(folder: Path, ratings: str = HEADER + RATINGS) -> list[str]:
    """Write a MovieLens log and return the settings that read it."""
    (folder / "ratings.csv").write_text(ratings)
    (folder / "movies.csv").write_text(MOVIES)
    return ["data.format=movielens", f"data.path={folder}", "periods.number=4", "replay.long_periods=2"]


def test_a_misspelt_key(tmp_path: Path) -> None:
    refused(job(tmp_path, config="recipe: {epoch: 3}\n"), tmp_path, "bad.yaml", "recipe.epoch", "epochs")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,2\n", ["ratings.csv", "122"]),
        ("1,999,4,5\n", ["ratings.csv", "999"]),
        ("1,2,17,5\n", ["ratings.csv", "17"]),
    ],
    ids=["broken row", "unknown item", "rating out of range"],
)
def test_a_bad_row(tmp_path: Path, row: str, words: list[str]) -> None:
    refused(job(tmp_path, *log(tmp_path, HEADER + RATINGS + row)), tmp_path, *words)


def test_a_backbone_that_is_no_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = job(tmp_path, *log(tmp_path), f"backbone.path={empty}")
    refused(done, tmp_path, "backbone.path", str(empty), "config.json")


def test_an_unknown_strategy(tmp_path: Path) -> None:
    refused(job(tmp_path, *log(tmp_path), "strategies=[lsat]"), tmp_path, "strategies", "'lsat'", "lsat-en")


def test_a_taken_port_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """It used to be found out half a minute later."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(job(tmp_path, *log(tmp_path), f"serve.port={port}"), tmp_path, "serve.port", str(port))


def test_a_token_that_is_not_set_is_said_before_anything_is_written(tmp_path: Path) -> None:
    done = job(tmp_path, *log(tmp_path), "serve.token_env=NO_SUCH_TOKEN")
    refused(done, tmp_path, "serve.token_env", "NO_SUCH_TOKEN")
