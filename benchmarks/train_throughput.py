"""Measure training throughput against HF Trainer + PEFT: same backbone, rows and machine, in one run, interleaved.

    python benchmarks/train_throughput.py --shape 20m --json benchmarks/results/train_throughput_20m.json

The rival is written as a user would write it: prompt and answer tokenised beforehand, padded by the stock collator,
the causal-LM loss over the whole vocabulary on all tokens. Weights are random (speed does not depend on them), the
tokenizer is a BPE of the log's own prompts, the vocabulary is padded to the shape's. Needs neither ray nor deepspeed.
`--dtype auto` is bfloat16 where the device multiplies it natively; the rival is then measured twice, in float32, its
default, and in bfloat16. Every method is run in every round; figures are medians over rounds.

On a CPU every method has a process of its own: in one process the rival, which asks the system for some hundred MB of
logits at every step, became slower from round to round. Its figures still hold what new memory costs it, and that
depends on what else has used the machine's. `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000` in the environment
makes glibc keep what it has, and that cost goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import machine, markdown, matmul_peak, own_process, peak_memory
from benchmarks.training_rounds import SHAPES, Ground, Round, Shape, Spent, Turn, lever, ours, prepare, trainer


@dataclass
class Method:
    """One way to train, and what was measured of it."""

    name: str
    note: str
    round: Round
    flops: Callable[[int, int], float] | None = None
    rate: list[float] = field(default_factory=list)
    """Targets a second."""
    cpu_rate: list[float] = field(default_factory=list)
    """Targets a second of processor time: what a machine shared with others still shows."""
    token_rate: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    """FLOP/s."""
    memory: float = 0.0
    dtype: torch.dtype = torch.float32
    """In which its products are."""


def linear_weights(shape: Shape) -> tuple[int, int]:
    """Return a layer's weights in linear maps: of keys and values, and of all else."""
    hidden, head = shape["hidden"], shape["hidden"] // shape["heads"]
    return 2 * hidden * shape["kv"] * head, 2 * hidden * hidden + 3 * hidden * shape["mlp"]


def whole_flops(shape: Shape) -> Callable[[int, int], float]:
    """Return the products that the plain computation asks for: 4 a weight and token, the head included."""
    weights = shape["layers"] * sum(linear_weights(shape)) + shape["hidden"] * shape["vocabulary"]
    return lambda tokens, _: 4.0 * weights * tokens


def lean_flops(shape: Shape) -> Callable[[int, int], float]:
    """Return the products that ours asks for: in the last layer only keys and values away from the answers."""
    keys, rest = linear_weights(shape)
    return lambda tokens, targets: (
        4.0 * ((shape["layers"] * keys + (shape["layers"] - 1) * rest) * tokens + rest * targets)
    )


def methods(ground: Ground, levers: bool) -> list[Method]:
    """Return everything that is measured; the rival first."""
    shape, wide = ground.shape, 4 * ground.batch
    whole, lean = whole_flops(shape), lean_flops(shape)
    padded = f"HF Trainer + PEFT, padded, causal-LM loss, batch {ground.batch}"
    found = [Method("trainer", f"{padded}, float32", trainer(ground), whole)]
    if ground.dtype == torch.bfloat16:
        found.append(Method("trainer_bf16", f"{padded}, bfloat16", trainer(ground, ground.dtype), whole))
    found += [
        Method("exact", f"ours, exact layout, batch {ground.batch}", ours(ground, "exact", ground.batch), lean),
        Method("shared", f"ours, shared-history(8), batch {wide}", ours(ground, "shared", wide), lean),
        Method("stream", f"ours, stream(16), batch {wide}", ours(ground, "stream", wide), lean),
    ]
    if levers:
        found += [
            Method("plain", "plain loop: padded, full logits, two-class loss, LoRA", lever(ground)),
            Method("all_weights", "plain, all weights trained instead of LoRA", lever(ground, "full")),
            Method("two_row_head", "plain + two rows of the head", lever(ground, "head")),
            Method("shared_prefix", "plain + shared prefix", lever(ground, "prefix")),
            Method("bucketing", "plain + batches of like length", lever(ground, "bucket")),
            Method("head_and_prefix", "two-row head + shared prefix", lever(ground, "head", "prefix")),
            Method("walk", "the same, walked by hand, last layer for answers", lever(ground, "head", "prefix", "walk")),
            Method("packing", "the same, no padding", lever(ground, "head", "prefix", "walk", "pack")),
        ]
    for method in found:
        if method.name != "trainer":
            method.dtype = ground.dtype
    return found


def here(found: list[Method], device: torch.device) -> dict[str, Turn]:
    """Return the methods' turns in this process."""

    def turn(method: Method, seconds: float) -> tuple[Spent, float]:
        with peak_memory(device) as memory:
            spent = method.round(seconds)
        return spent, memory["peak"]

    return {method.name: partial(turn, method) for method in found}


@contextmanager
def apart(found: list[Method], options: argparse.Namespace) -> Iterator[dict[str, Turn]]:
    """Yield the methods' turns, each method in a process of its own; the levers share one."""
    with ExitStack() as stack:
        names = {method.name: method.name if method.flops else "levers" for method in found}
        pools = {name: stack.enter_context(own_process(_set_up, options)) for name in dict.fromkeys(names.values())}
        yield {name: partial(_asked, pools[place], name) for name, place in names.items()}


_turns: dict[str, Turn] = {}
"""Of a process of `apart`."""


def _set_up(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    ground = prepare(options)
    _turns.update(here(methods(ground, not options.no_levers), ground.device))


def _turn(name: str, seconds: float) -> tuple[Spent, float]:
    return _turns[name](seconds)


def _asked(pool: ProcessPoolExecutor, name: str, seconds: float) -> tuple[Spent, float]:
    return pool.submit(_turn, name, seconds).result()


def measure(
    found: list[Method],
    turns: dict[str, Turn],
    ground: Ground,
    options: argparse.Namespace,
    size: int | None = None,
) -> dict[torch.dtype, float]:
    """Run all methods in every round, one after the other; return the best matrix product seen by type, in FLOP/s."""
    peak = {method.dtype: 0.0 for method in found}
    for method in found:  # warm up: one step each
        turns[method.name](0.0)
    for number in range(options.rounds):
        for method in found:
            kind = method.dtype
            peak[kind] = max(peak[kind], matmul_peak(ground.device, size, 0.2, kind))
            (targets, tokens, spent, used), memory = turns[method.name](options.seconds)
            method.rate.append(targets / spent)
            method.cpu_rate.append(targets / max(used, 1e-9))
            method.token_rate.append(tokens / spent)
            method.memory = max(method.memory, memory)
            if method.flops:
                method.work.append(method.flops(tokens, targets) / spent)
        print(
            f"round {number + 1}: " + ", ".join(f"{m.name} {m.rate[-1]:.1f} ({m.cpu_rate[-1]:.1f})" for m in found),
            flush=True,
        )
    return peak


def report(
    found: list[Method], ground: Ground, options: argparse.Namespace, peak: dict[torch.dtype, float]
) -> dict[str, Any]:
    """Return the tree that is written."""
    rate = {m.name: statistics.median(m.rate) for m in found}
    cpu = {m.name: statistics.median(m.cpu_rate) for m in found}
    ratios: dict[str, Any] = {f"{n}_ratio": rate[n] / rate["trainer"] for n in ("exact", "shared", "stream")}
    half = rate.get("trainer_bf16")
    ratios["exact_ratio_bf16_peer"] = rate["exact"] / half if half else None
    ratios |= {f"{n}_ratio_cpu": cpu[n] / cpu["trainer"] for n in ("exact", "shared", "stream")}
    if "plain" in rate:
        rate = cpu if ground.device.type == "cpu" else rate
        ratios |= {
            "lever_lora_only": rate["plain"] / rate["all_weights"],
            "lever_two_row_head": rate["two_row_head"] / rate["plain"],
            "lever_shared_prefix": rate["shared_prefix"] / rate["plain"],
            "lever_bucketing": rate["bucketing"] / rate["plain"],
            "lever_walk": rate["walk"] / rate["head_and_prefix"],
            "lever_packing": rate["packing"] / rate["walk"],
        }
    table = {
        m.name: {
            "note": m.note,
            "targets_per_s": statistics.median(m.rate),
            "targets_per_cpu_s": cpu[m.name],
            "tokens_per_s": statistics.median(m.token_rate),
            "peak_mib": round(m.memory, 1),
            "mfu": statistics.median(m.work) / peak[m.dtype] if m.work else None,
            "rounds": [round(r, 3) for r in m.rate],
        }
        for m in found
    }
    gap = None
    if options.quality and Path(options.quality).is_file():
        runs = json.loads(Path(options.quality).read_text())["data"]
        gap = {d: {f"{r['layout']} on {r['backbone']}": r["gap"] for r in rows} for d, rows in runs.items()}
    encodings = {
        name: {
            "tokens_per_target": len(e.tokens) / len(e.row),
            "targets_per_sequence": len(e.row) / len(e),
            "prefix": len(e.prefix),
        }
        for name, e in ground.encoded.items()
    }
    return {
        **ratios,
        "auc_gap": gap,
        "mfu": table["exact"]["mfu"],
        "shape": options.shape,
        "dtype": str(ground.dtype).removeprefix("torch."),
        "rows": "ml-latest-small" if options.log else "synthetic",
        "sizes": ground.shape,
        "tokens": encodings,
        "methods": table,
        "machine": machine(ground.device, options.threads, peak[ground.dtype]),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="20m")
    parser.add_argument("--json", type=Path, help="result; a page with the same name ends in .md")
    parser.add_argument("--log", help="folder of a MovieLens log (default: the synthetic stream)")
    parser.add_argument("--rows", type=int, default=6000, help="training rows")
    parser.add_argument("--batch", type=int, default=32, help="targets of a forward pass of baseline and exact layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="least time of a method in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of our backbone")
    parser.add_argument("--quality", default="benchmarks/results/layout_quality.json", help="where the AUC gaps are")
    parser.add_argument("--no-levers", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    ground = prepare(options)
    found = methods(ground, not options.no_levers)
    size = 256 if options.shape == "toy" else None
    if ground.device.type == "cpu":
        with apart(found, options) as turns:
            peak = measure(found, turns, ground, options, size)
    else:
        peak = measure(found, here(found, ground.device), ground, options, size)
    tree = report(found, ground, options, peak)
    print(markdown(tree))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(tree, indent=2) + "\n")
        options.json.with_suffix(".md").write_text(markdown(tree))
    return tree


if __name__ == "__main__":
    main(sys.argv[1:])
