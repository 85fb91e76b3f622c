"""The throughput benchmark at toy size, so that it cannot rot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import train_throughput
from benchmarks.measuring import machine, matmul_peak, own_process
from benchmarks.training_rounds import prepare

KEYS = {"exact_ratio", "shared_ratio", "stream_ratio", "auc_gap", "mfu"}
LEVERS = {
    "lever_lora_only",
    "lever_two_row_head",
    "lever_shared_prefix",
    "lever_bucketing",
    "lever_walk",
    "lever_packing",
}


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_toy_run(dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    quality = tmp_path / "quality.json"
    run = {"layout": "stream(16)", "backbone": "own", "gap": 0.25}
    quality.write_text(json.dumps({"data": {"synthetic": [run]}}))
    options = f"--shape toy --rows 160 --batch 8 --rounds 1 --seconds 0 --threads 1 --device cpu --dtype {dtype}"
    train_throughput.main([*options.split(), "--json", str(out), "--quality", str(quality)])
    tree = json.loads(out.read_text())
    assert tree.keys() >= KEYS | LEVERS | {"exact_ratio_bf16_peer"}
    assert tree["dtype"] == dtype
    assert ("trainer_bf16" in tree["methods"]) == (tree["exact_ratio_bf16_peer"] is not None) == (dtype == "bfloat16")
    assert tree["auc_gap"] == {"synthetic": {"stream(16) on own": 0.25}}
    assert all(tree[k] > 0 for k in (KEYS | LEVERS) - {"auc_gap"})
    assert tree["tokens"]["stream"]["tokens_per_target"] < tree["tokens"]["exact"]["tokens_per_target"]
    assert "| trainer | " in out.with_suffix(".md").read_text()


def test_each_method_has_a_process_of_its_own() -> None:
    """Only the levers share one: what a method leaves in a heap made the rival slower, and counted as its memory."""
    words = ["--shape", "toy", "--rows", "160", "--batch", "8", "--dtype", "bfloat16", "--device", "cpu"]
    options = train_throughput.parse(words)
    found = train_throughput.methods(prepare(options), levers=True)
    with train_throughput.apart(found, options) as turns:
        pools = {name: id(turn.args[0]) for name, turn in turns.items()}  # type: ignore[attr-defined]
    own = {"trainer", "trainer_bf16", "exact", "shared", "stream"}
    assert own < set(pools) and len({pools[name] for name in own}) == 5 and len(set(pools.values())) == 6
    with own_process() as one, own_process() as other:
        assert len({os.getpid(), *(pool.submit(os.getpid).result() for pool in (one, other, one))}) == 3


def test_the_work_that_is_counted() -> None:
    """One layer of width 4 with heads of 2 and an MLP of 8, a vocabulary of 10."""
    shape = {"hidden": 4, "layers": 2, "heads": 2, "kv": 1, "mlp": 8, "vocabulary": 10}
    keys, rest = train_throughput.linear_weights(shape)
    assert (keys, rest) == (2 * 4 * 2, 2 * 4 * 4 + 3 * 4 * 8)
    assert train_throughput.whole_flops(shape)(7, 3) == 4 * 7 * (2 * (keys + rest) + 40)
    assert train_throughput.lean_flops(shape)(7, 3) == 4 * (7 * (2 * keys + rest) + 3 * rest)


def test_the_machine_is_described_but_not_named() -> None:
    import socket

    import torch

    facts = machine(torch.device("cpu"), 1, matmul_peak(torch.device("cpu"), 64, 0.01))
    assert facts["matmul_peak_gflops"] > 0
    assert socket.gethostname() not in json.dumps(facts)


@pytest.mark.parametrize("shape", sorted(train_throughput.SHAPES))
def test_shapes_are_whole(shape: str) -> None:
    sizes = train_throughput.SHAPES[shape]
    assert sizes["hidden"] % sizes["heads"] == 0
    assert sizes["heads"] % sizes["kv"] == 0
