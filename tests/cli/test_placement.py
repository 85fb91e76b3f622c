"""What can be placed, and what is refused with which ways out."""

from __future__ import annotations

import pytest

from lsat_ray.cli.placement import Node, problem
from lsat_ray.config import Experiment, load

ONE = [Node(cpu=8, gpu=1)]
TWO = [Node(cpu=8, gpu=2)]


def config(*sets: str) -> Experiment:
    return load(None, ["engine.workers=1", *sets])


def test_the_default_fits_two_cores() -> None:
    assert problem(load(None), [Node(cpu=2, gpu=0)]) is None


def test_one_gpu_cannot_train_and_serve_whole_and_both_ways_out_fit() -> None:
    line = problem(config("engine.gpus=1"), ONE)
    assert line and "2 GPU" in line
    assert "--set engine.gpus=0.5 --set serve.gpus=0.5" in line
    assert "--set serve.gpus=0 " in line
    assert problem(config("engine.gpus=0.5", "serve.gpus=0.5"), ONE) is None
    assert problem(config("engine.gpus=1", "serve.gpus=0"), ONE) is None


def test_a_study_serves_nothing() -> None:
    assert problem(config("engine.gpus=1"), ONE, endpoint=False) is None


@pytest.mark.parametrize("sets", [["engine.gpus=1"], ["engine.sessions=2", "engine.gpus=0.5", "serve.gpus=1"]])
def test_two_gpus_are_enough(sets: list[str]) -> None:
    assert problem(config(*sets), TWO) is None


def test_part_of_a_gpu_is_found_on_one_gpu() -> None:
    three = config("engine.sessions=2", "engine.gpus=0.6", "serve.gpus=0.6")
    assert problem(three, TWO) is not None  # 1.8 GPUs of 2, but no third share of .6
    assert problem(config("engine.sessions=2", "engine.gpus=0.6", "serve.gpus=0.4"), TWO) is None


def test_a_worker_needs_one_machine() -> None:
    wide = config("engine.cpus=6")
    assert problem(wide, [Node(4, 0), Node(4, 0)]) is not None
    assert problem(wide, [Node(4, 0), Node(6, 0)]) is None


def test_two_ranks_on_one_gpu_are_refused() -> None:
    line = problem(config("engine.workers=2", "engine.gpus=0.5"), TWO)
    assert line and "NCCL" in line


def test_without_a_gpu_the_remedy_is_the_cpu() -> None:
    line = problem(config("engine.gpus=1"), [Node(8, 0)])
    assert line and "engine.gpus=0" in line and "backbone.device=cpu" in line
