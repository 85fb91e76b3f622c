"""Measure how cost grows: with the log's length, the history, the model, and the workers.

    python benchmarks/cost_growth.py --json benchmarks/results/cost_growth.json

Every point is a process of its own, so that its peak memory is its own; one thread per process. A part is written as
soon as it ends, with the machine that it was measured on, and the figure beside the JSON is drawn again; parts that are
in the file and not in `--only` stay.

- `samples`: the embedded stream of so many samples is drawn, cut into periods of 2,000, and its last period encoded and
  trained on (nano shape). `read_s`, `cut_s` and `encode_s` are seconds; the first two are of the whole log.
- `history`: events in a prompt (nano shape, no prompt cut short).
- `weights`: random backbones.
- `workers`: data parallel over gloo, each worker a process with one thread (20m shape).

`targets_per_s` is our own step loop in the exact layout. All seconds but that one's are of processor time, which a
machine shared with others changes less than the wall clock. `slope` is that of the logarithm of `cpu_s_per_target` (of
`read_s + cut_s` for the samples, of wall seconds per target for the workers) over the logarithm of what grows: 1 is
proportional, 0 is free.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Point = dict[str, Any]
"""What is asked for, then what was measured."""

PARTS: dict[str, list[Point]] = {
    "samples": [{"samples": n} for n in (10_000, 100_000, 1_000_000)],
    "history": [{"history": n} for n in (10, 50, 200)],
    "weights": [{"shape": name} for name in ("1m", "5m", "20m", "0.1b")],
    "workers": [{"workers": n, "shape": "20m"} for n in (1, 2)],
}
AXES = {"samples": "samples", "history": "history", "weights": "parameters", "workers": "workers"}
"""What grows in each part."""
MORE_SHAPES = {
    "1m": {"hidden": 128, "layers": 4, "heads": 4, "kv": 4, "mlp": 344, "vocabulary": 1500},
    "5m": {"hidden": 256, "layers": 6, "heads": 4, "kv": 4, "mlp": 688, "vocabulary": 1500},
}
PERIOD = 2000
"""Samples of a period."""


def measure(point: Point, seconds: float, rank: int = 0, store: str = "") -> Point:
    """Read, cut, encode and train; return the point with what was measured.

    Args:
        point: of `PARTS`.
        seconds: of training, at least.
        rank: of this worker.
        store: file by which the workers meet.
    """
    import torch
    from torch import distributed

    from benchmarks.measuring import peak_memory
    from benchmarks.training_rounds import SHAPES, dressed
    from lsat_ray.backbone import nano
    from lsat_ray.config import DataConfig, PeriodsConfig, PromptConfig, Recipe, SyntheticConfig
    from lsat_ray.data import synthetic
    from lsat_ray.data.periods import cut
    from lsat_ray.prompts.batch import plan_epoch
    from lsat_ray.prompts.encode import Encoder
    from lsat_ray.training.engine import DataParallel, TorchEngine
    from lsat_ray.training.step import gradients

    torch.set_num_threads(1)
    samples, history, workers = point.get("samples", 10_000), point.get("history", 10), point.get("workers", 1)
    shape = {**SHAPES, **MORE_SHAPES}[point.get("shape", "nano")]
    cpu = torch.device("cpu")
    with peak_memory(cpu) as memory:
        began = time.process_time()
        stream = SyntheticConfig(warmup=2000, users=max(100, samples // 25), items=2000)
        source = DataConfig(keep_last=samples, history=history, synthetic=stream)
        log = synthetic.generate(stream, samples, history)
        read = time.process_time() - began
        periods = cut(log, source, PeriodsConfig(number=samples // PERIOD))
        cutting = time.process_time() - began - read
        rows = periods.rows(periods.count)
        tokenizer = nano.build_tokenizer(nano.texts(periods.titles, rows, "movie"), 600)
        began = time.process_time()
        encoded = Encoder(tokenizer, PromptConfig(max_tokens=4000), periods.titles)(rows)
        encoding = time.process_time() - began
        model = dressed(shape, cpu, torch.float32, tokenizer)
        if workers > 1:
            distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
        engine = DataParallel() if workers > 1 else TorchEngine()
        engine.begin(model, Recipe(), 1)
        plan = itertools.cycle(plan_epoch(encoded, 32, np.random.default_rng(0)))
        gradients(model, engine, encoded, next(plan), 1)  # not counted: it allocates
        engine.step(1e-3)
        began, busy, targets, more = time.perf_counter(), time.process_time(), 0, True
        while more:
            group = next(plan)
            gradients(model, engine, encoded, group, 1)
            engine.step(1e-3)
            targets += len(group)
            more = not engine.any(time.perf_counter() - began >= seconds)
        spent, used = time.perf_counter() - began, time.process_time() - busy
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {
        **point,
        "parameters": frozen,
        "tokens_per_prompt": round(float(len(encoded.prefix) + encoded.lengths.mean()), 1),
        "read_s": round(read, 3),
        "cut_s": round(cutting, 3),
        "encode_s": round(encoding, 3),
        "targets_per_s": round(targets / spent, 2),
        "cpu_s_per_target": round(used / targets, 6),
        "peak_mib": round(memory["peak"]),
    }


def processes(point: Point, seconds: float) -> Point:
    """Measure a point in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, __file__, "--child", json.dumps(point), "--seconds", str(seconds)]
        line += ["--store", str(Path(folder) / "store")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen([*line, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(point.get("workers", 1))
        ]
        outputs = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise RuntimeError(f"{point}: a process ended with {[one.returncode for one in started]}")
    return together([json.loads(out.splitlines()[-1]) for out in outputs])


def together(workers: list[Point]) -> Point:
    """Return the account of workers that share each batch: memory and processor time are those of all."""
    summed = {key: round(sum(one[key] for one in workers), 6) for key in ("peak_mib", "cpu_s_per_target")}
    return {**workers[0], **summed}


def cost(part: str, point: Point) -> float:
    """Return the seconds that a part is about."""
    if part == "samples":
        return float(point["read_s"] + point["cut_s"])
    return float(1.0 / point["targets_per_s"] if part == "workers" else point["cpu_s_per_target"])


def slope(part: str, points: list[Point]) -> float:
    """Return the slope of the seconds over what grows, both in logarithms."""
    x = np.log([point[AXES[part]] for point in points])
    return round(float(np.polyfit(x, np.log([cost(part, point) for point in points]), 1)[0]), 2)


def draw(parts: dict[str, Any], file: Path) -> None:
    """Draw a panel for each part: seconds over what grows, and peak memory."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from lsat_ray.report.style import GREY, drawing

    with drawing():
        figure = Figure(figsize=(3.4 * len(parts), 3.2), layout="constrained")
        for axes, (part, found) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True):
            points = found["points"]
            x = [point[AXES[part]] for point in points]
            seconds, memory = [cost(part, point) for point in points], [point["peak_mib"] for point in points]
            other = axes.twinx()
            axes.loglog(x, seconds, marker="o")
            other.loglog(x, memory, marker="s", color=GREY, ls="--")
            axes.set_title(f"{part}: slope {found['slope']:g}")
            what = {"samples": "CPU s to read and cut", "workers": "s per target"}
            axes.set(xlabel=AXES[part], ylabel=what.get(part, "CPU s per target"))
            other.set_ylabel("peak memory, MiB", color=GREY)
            axes.set_xticks(x, [EngFormatter(places=0, sep="")(value) for value in x])
            axes.set_yticks(seconds, [f"{value:.2g}" for value in seconds])
            other.set_yticks(memory, [f"{value:,}" for value in memory])
            for each in (axes, other):
                each.minorticks_off()
        figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure every part, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of training per point")
    parser.add_argument("--smallest", type=int, help="the first N points of each part alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(json.loads(given.child), given.seconds, given.rank, given.store)))
        return
    import torch

    from benchmarks.measuring import machine, matmul_peak
    from lsat_ray.files import write_atomic

    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    parts: dict[str, Any] = {}
    if given.json and given.json.is_file():
        parts = json.loads(given.json.read_text())
    for part in given.only:
        points = []
        for point in PARTS[part][: given.smallest]:
            points.append(processes(point, given.seconds))
            print(points[-1], flush=True)
        parts[part] = {
            "slope": slope(part, points) if len(points) > 1 else None,
            "points": points,
            "seconds": given.seconds,
            "machine": machine(cpu, 1, matmul_peak(cpu)),
        }
        if given.json:
            write_atomic(given.json, json.dumps(parts, indent=1) + "\n")
            if len(points) > 1:
                draw(parts, given.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
