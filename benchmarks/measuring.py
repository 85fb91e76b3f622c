"""What the benchmarks of throughput and of single passes measure with, and how they describe machine and result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsat_ray.files import write_atomic


def clock(device: torch.device) -> float:
    """Return seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_peak(
    device: torch.device, size: int | None = None, seconds: float = 1.0, dtype: torch.dtype = torch.float32
) -> float:
    """Return the products a second of the best of some square matrix products, in FLOP/s."""
    size = size or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, began = 0.0, clock(device)
    while clock(device) - began < seconds:
        start = clock(device)
        a @ b
        best = max(best, 2.0 * size**3 / (clock(device) - start))
    return best


def own_process(start: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """Return a pool of one fresh process: what runs there has a heap of its own. `start(*given)` is its first call."""
    return ProcessPoolExecutor(1, get_context("spawn"), start, given)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Measure the peak inside the block in MiB: of the device's allocator, or of the process's resident set."""
    out = {"peak": 0.0}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield out
        out["peak"] = torch.cuda.max_memory_allocated(device) / 2**20
        return
    stop, page = threading.Event(), os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not stop.wait(0.02):
            out["peak"] = max(out["peak"], int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield out
    finally:
        stop.set()
        thread.join()


def machine(device: torch.device, threads: int, peak: float) -> dict[str, Any]:
    """Describe the machine without naming it."""
    import peft
    import transformers

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def turns(ways: Mapping[str, Callable[[], np.ndarray]], rounds: int, device: torch.device) -> dict[str, Any]:
    """Let two ways of one work take turns, after a call of each to warm up, and return their part of a table's row.

    Args:
        ways: the slower one first; each returns margins on the host, so that the device has ended.
        rounds: turns of each.
        device: a CPU is measured in seconds of processor time.

    Returns:
        `<way>_ms`, the median of each; `gain` of the second way, median and quartiles of the rounds' ratios;
        `margins_differ_by_at_most`.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    first, second = ways
    margin = {name: way() for name, way in ways.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way()
            spent[name].append(clock() - began)
    gain = np.quantile(np.array(spent[first]) / np.array(spent[second]), (0.25, 0.5, 0.75))
    return {
        **{f"{name}_ms": round(1000 * float(np.median(times)), 2) for name, times in spent.items()},
        "gain": {name: round(float(g), 2) for name, g in zip(("low", "median", "high"), gain, strict=True)},
        "margins_differ_by_at_most": float(np.abs(margin[first] - margin[second]).max()),
    }


def by_shape(
    doc: str | None,
    shapes: Iterable[str],
    measure: Callable[[str, torch.device, int], Iterator[dict[str, Any]]],
    **facts: Any,
) -> None:
    """Read the command line, measure one shape after the other on one thread, and keep what was measured.

    Args:
        doc: of the script; its first line is the help's.
        shapes: that may be asked for.
        measure: yields the rows of a shape, given the device and the rounds.
        facts: written beside the rows.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["nano", "20m"], choices=sorted(shapes))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    result: dict[str, Any] = {**facts, "rounds": given.rounds, "shapes": {}}
    peak = matmul_peak(device)
    for shape in given.shapes:
        rows = result["shapes"][shape] = []
        for row in measure(shape, device, given.rounds):
            print(shape, row, flush=True)
            rows.append(row)
            result["machine"] = machine(device, 1, peak)
            write_atomic(given.json, json.dumps(result, indent=2) + "\n")


def markdown(tree: dict[str, Any]) -> str:
    """Return the tree as a page."""
    host = tree["machine"]
    lines = [
        f"# Training throughput, {tree['shape']} shape, {tree['rows']} rows",
        "",
        f"{host['device']}: {host['cpu']}, {host['cores']} cores, {host['threads']} threads, load average "
        f"{host['load_average'][0]} at the end; matrix products {host['matmul_peak_gflops']} GFLOP/s; "
        f"torch {host['torch']}, transformers {host['transformers']}, peft {host['peft']}. "
        "Medians over interleaved rounds.",
        "",
        "| method | targets/s | over Trainer | per CPU s | over Trainer | tokens/s | peak MiB | of peak | what |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base, cpu = (tree["methods"]["trainer"][k] for k in ("targets_per_s", "targets_per_cpu_s"))
    for name, row in tree["methods"].items():
        share = "" if row["mfu"] is None else f"{100 * row['mfu']:.0f} %"
        lines.append(
            f"| {name} | {row['targets_per_s']:.1f} | {row['targets_per_s'] / base:.1f}x | "
            f"{row['targets_per_cpu_s']:.1f} | {row['targets_per_cpu_s'] / cpu:.1f}x | {row['tokens_per_s']:.0f} | "
            f"{row['peak_mib']:.0f} | {share} | {row['note']} |"
        )
    lines += ["", "| lever (by processor time on a CPU) | brings alone |", "|---|---|"]
    lines += [f"| {k.removeprefix('lever_')} | {v:.2f}x |" for k, v in tree.items() if k.startswith("lever_")]
    lines += ["", "| layout | tokens a target | targets a sequence | shared prefix |", "|---|---|---|---|"]
    lines += [
        f"| {k} | {v['tokens_per_target']:.1f} | {v['targets_per_sequence']:.1f} | {v['prefix']} |"
        for k, v in tree["tokens"].items()
    ]
    return "\n".join(lines) + "\n"
