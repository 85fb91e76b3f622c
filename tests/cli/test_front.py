"""The front door: what is refused before anything starts, and what a notebook can import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lsat_ray
from lsat_ray import config as configs
from lsat_ray.cli import front
from lsat_ray.cli.app import app
from lsat_ray.errors import LsatError

ROOT = Path(__file__).resolve().parents[2]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_or_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, lsat_ray, lsat_ray.cli.app; print([m for m in ('torch', 'ray', 'pandas') if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_the_first_line_comes_before_anything_heavy_is_loaded() -> None:
    """Something to see at once: what is slow to import comes after the first line."""
    code = (
        "import sys, lsat_ray\n"
        "class Seen(Exception): pass\n"
        "def say(text):\n"
        "    print([m for m in ('torch', 'ray', 'transformers', 'pandas') if m in sys.modules]); raise Seen\n"
        "try: lsat_ray.replay(runs_dir='nowhere', say=say)\n"
        "except Seen: pass\n"
    )
    assert run(code).strip() == "[]"


def test_every_name_of_the_package_is_there_and_no_other() -> None:
    for name in lsat_ray.__all__:
        assert getattr(lsat_ray, name) is not None
    assert set(lsat_ray.__all__) <= set(dir(lsat_ray))
    with pytest.raises(AttributeError, match="no attribute 'repaly'"):
        lsat_ray.repaly  # noqa: B018


@pytest.mark.parametrize("address", ["s3://bucket/runs", "gs://bucket/runs"])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("lsat_ray.cli.app", "replay --runs-dir"),
        ("lsat_ray.cli.app", "study --runs-dir"),
        ("lsat_ray.cli.app", "sweep --vary lora.rank=[2,4] --runs-dir"),
        ("lsat_ray.cli.app", "doctor --runs-dir"),
        ("lsat_ray.cli.app", "serve --follow"),
        ("lsat_ray.cli.app", "search --run"),
        ("lsat_ray.cli.app", "trial withdraw"),
        ("jobs.stream_replay", "--runs-dir"),
        ("jobs.compare_strategies", "--runs-dir"),
        ("jobs.sweep", "--vary lora.rank=[2,4] --runs-dir"),
        ("jobs.analyze_search", "--run"),
    ],
)
def test_an_address_is_no_folder(
    address: str, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve --follow` waited for ever for a run in a folder of that name."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(import_module(module).app, [*words.split(), address])
    assert done.exit_code == 2
    (line,) = [text for text in done.output.splitlines() if "reading the logs" not in text]
    assert re.match(r"error: .*bucket/runs: ", line)
    if not words.endswith(("--run", "withdraw")):  # these two look into the folder of a run that has ended
        assert "runs lie in a folder, not behind an address" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.epochs=many", ["--set recipe.epochs=many", "integer"]),
        ("recpie.epochs=1", ["--set recpie.epochs=1", "did you mean `recipe`"]),
        ("recipe.epoch=1", ["--set recipe.epoch=1", "did you mean `epochs`"]),
        ("replay.first_test=99", ["--set replay.first_test=99", "past the last period"]),
        ("recipe={epoch: 1}", ["--set recipe={epoch: 1}", "`recipe.epoch`"]),
    ],
)
def test_an_override_at_fault_is_named_and_the_file_is_not(tmp_path: Path, override: str, words: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lora: {rank: 4}\n")
    with pytest.raises(LsatError) as caught:
        configs.load(file, ["lora.alpha=8", override])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "mine.yaml" not in str(caught.value)


def test_a_fault_of_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lora: {rank: none}\n")
    with pytest.raises(LsatError, match=r"mine.yaml: key `lora.rank`"):
        configs.load(file, ["lora.alpha=8"])


def test_replicas_use_the_gpus_that_training_uses_unless_told_otherwise() -> None:
    assert configs.load(None, ["engine.gpus=1"]).serve.gpus == 1
    assert configs.load(None, ["engine.gpus=0.5", "serve.gpus=0.25"]).serve.gpus == 0.25
    assert configs.load(None, ["engine.gpus=1", "serve.gpus=0"]).serve.gpus == 0
    assert configs.load(None).serve.gpus == 0


def test_a_resolved_config_reads_back_as_it_was(tmp_path: Path) -> None:
    before = configs.load(None, ["engine.gpus=1"])
    (tmp_path / "resolved.yaml").write_text(before.to_yaml())
    assert configs.load(tmp_path / "resolved.yaml") == before


def test_validate_reads_the_log_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["validate", str(ROOT / "jobs/configs/smoke.yaml")])
    assert done.exit_code == 0, done.output
    assert "680 samples" in done.output
    assert "smoke.yaml: valid" in done.output
    assert list(tmp_path.iterdir()) == []
    assert lsat_ray.validate(ROOT / "jobs/configs/smoke.yaml", say=lambda text: None) in done.output


def test_a_training_and_a_serving_gpu_on_one_are_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = configs.load(ROOT / "jobs/configs/smoke.yaml", ["engine.gpus=1000", "engine.workers=1"])
    with pytest.raises(LsatError, match="the run asks for 2000 GPU"):
        front.replay(config, tmp_path / "runs", say=lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_says_at_once_how_to_go_on(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from lsat_ray.cli.console import one_clear_error\n"
        "sys.argv = ['/usr/bin/lsat-ray', 'replay', '--name', 'two words']\n"
        "with one_clear_error(): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.returncode == 130
    assert "go on with: lsat-ray replay --name 'two words'" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("status", [0, 2])
def test_a_command_ends_with_its_status_and_what_was_registered_for_the_end_runs(status: int) -> None:
    code = (
        "import atexit\nfrom lsat_ray.cli.console import run\natexit.register(lambda: print('registered'))\n"
        f"def command() -> None:\n    print('said', end=' ')\n    raise SystemExit({status})\nrun(command)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (status, "said registered\n", "")


def test_long_lines_are_not_wrapped_when_piped() -> None:
    path = "/" + "/".join(["folder"] * 40)
    assert path in run(f"from lsat_ray.cli.console import say; say('results in {path}')")
    assert f"error: {path}" in subprocess.run(
        [sys.executable, "-c", f"""
from lsat_ray.cli.console import one_clear_error
from lsat_ray.errors import LsatError
with one_clear_error(): raise LsatError({path!r})
"""],
        capture_output=True, text=True, cwd=ROOT, timeout=180,
    ).stdout  # fmt: skip


def test_what_ray_says_in_every_run_is_kept_out_and_nothing_else() -> None:
    from lsat_ray.distributed.cluster import SETTINGS

    skipped = re.compile(SETTINGS["RAY_DEDUP_LOGS_SKIP_REGEX"])
    usual = [
        "Task ServeController.listen_for_change failed. There are infinite retries remaining, so the task will be "
        "retried. Error: The actor is dead because it was killed by `ray.kill`.",
        "WARNING: 8 PYTHON worker processes have been started on node: 42 with address: 127.0.0.1, which is 4x",
    ]
    assert all(skipped.search(line) for line in usual)
    for line in ("Task ServeController.deploy failed: out of memory", "A worker died: SIGKILL", "Task trial failed"):
        assert not skipped.search(line)
