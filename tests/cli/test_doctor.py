"""The doctor finds what is wrong, says what helps, and its exit code says whether a run can start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsat_ray.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--config", str(ROOT / "jobs/configs/smoke.yaml")]


def doctor(tmp_path: Path, *sets: str, config: list[str] = SMOKE) -> tuple[int, dict[str, list[str]]]:
    """Return the exit code and the lines by level."""
    options = [part for s in sets for part in ("--set", s)]
    done = CliRunner().invoke(app, ["doctor", *config, "--runs-dir", str(tmp_path / "runs"), *options])
    levels: dict[str, list[str]] = {"ok": [], "warn": [], "fail": [], "error:": []}
    for line in done.output.splitlines():
        level, _, text = line.partition(" ")
        levels[level].append(text.strip())
    assert not (tmp_path / "runs").exists()
    return done.exit_code, levels


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_config_that_fits_passes_and_every_subject_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, lines = doctor(tmp_path, f"serve.port={free_port()}")
    assert code == 0 and lines["fail"] == [], lines
    said = " ".join(lines["ok"] + lines["warn"])
    for subject in ("versions: python", "devices:", "bfloat16:", "placement:", "disk:", "ports:", "log: 680 samples"):
        assert subject in said
    for subject in ("labels:", "answer tokens: 'Yes'", "prompts:", "ZeRO stage 1"):
        assert subject in said


def test_the_stage_is_the_one_that_training_picks(tmp_path: Path) -> None:
    _, lines = doctor(tmp_path, "engine.zero=auto")
    assert any("ZeRO stage 0: a worker needs about" in line for line in lines["ok"])


def test_a_taken_port_and_a_missing_token_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, lines = doctor(tmp_path, f"serve.port={port}", "serve.token_env=NO_SUCH_TOKEN")
    assert code == 1
    assert any(f"127.0.0.1:{port} cannot be had" in line for line in lines["fail"])
    assert any("export NO_SUCH_TOKEN" in line for line in lines["fail"])


def test_an_open_endpoint_without_a_token_is_warned_of(tmp_path: Path) -> None:
    _, lines = doctor(tmp_path, "serve.host=0.0.0.0", f"serve.port={free_port()}")
    assert any("serve.token_env" in line for line in lines["warn"])


def test_prompts_that_are_cut_are_warned_of_with_the_length_that_fits(tmp_path: Path) -> None:
    _, lines = doctor(tmp_path, "prompt.max_tokens=100")
    (line,) = [line for line in lines["warn"] if line.startswith("prompts:")]
    longest = line.split("prompt.max_tokens=")[1].split(",")[0]
    _, lines = doctor(tmp_path, f"prompt.max_tokens={longest}")
    assert not [line for line in lines["warn"] if line.startswith("prompts:")]


def test_memory_that_does_not_suffice_fails(tmp_path: Path) -> None:
    code, lines = doctor(tmp_path, "recipe.batch_size=4000000", "prompt.max_tokens=100000")
    assert code == 1
    assert any("--set engine.micro_batches=" in line for line in lines["fail"])


def test_a_replica_that_does_not_fit_its_share_of_a_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from shapes import shape, shipped

    from lsat_ray.cli.model import fits
    from lsat_ray.training import memory

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(memory, "size_of", lambda _: 80 * 2**30)
    (found,) = fits(shipped("ml1m_llama7b", monkeypatch), shape("llama7b"))
    assert found.level == "ok"
    whole, replica = fits(shipped("ml1m_llama7b", monkeypatch, "serve.gpus=0.1"), shape("llama7b"))
    assert (whole.level, replica.level) == ("ok", "fail")
    assert replica.text.startswith("a replica needs about 1") and "serve.gpus=1" in replica.remedy


def test_a_log_that_cannot_be_read_fails_with_its_remedy(tmp_path: Path) -> None:
    code, lines = doctor(tmp_path, "data.format=movielens", f"data.path={tmp_path}/none")
    assert code == 1
    assert any(str(tmp_path / "none") in line for line in lines["fail"])


def test_a_backbone_that_is_no_model_fails(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, lines = doctor(tmp_path, f"backbone.path={tmp_path}/empty")
    assert code == 1
    assert any("config.json" in line for line in lines["fail"])


def test_a_model_folder_is_examined_and_its_weights_are_not_read(tmp_path: Path, tiny_backbone_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_backbone_folder, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    code, lines = doctor(tmp_path, f"backbone.path={folder}", f"serve.port={free_port()}")
    assert any("M parameters" in line for line in lines["ok"]), lines
    assert code == 0


def test_nothing_but_findings_is_printed(tmp_path: Path) -> None:
    """The libraries that are asked (transformers, peft, deepspeed) stay silent."""
    words = [sys.executable, "-m", "lsat_ray", "doctor", *SMOKE, "--set", f"serve.port={free_port()}"]
    env = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "RAY_ADDRESS")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=360)
    assert done.stderr == ""
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in done.stdout.splitlines()), done.stdout
