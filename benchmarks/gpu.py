"""Measure on one GPU all that the library says of GPUs: parity, speed, memory, kernels, scoring, and a whole replay.

    python benchmarks/gpu.py --json gpu.json --minutes 40
    python benchmarks/gpu.py --json toy.json --device cpu --toy      # the same parts in small, under a minute

Needs neither ray nor deepspeed. Weights are random, so nothing is downloaded; the log is the synthetic stream. Parts
run in the order of their worth, each is written as it ends, an error is written in its place, and what does not fit
into `--minutes` is skipped and named. A part that has begun is not interrupted. Exit code 1: a part failed or is out of
tolerance.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import train_throughput
from benchmarks.measuring import clock, machine, matmul_peak
from benchmarks.training_rounds import Ground, prepare, written_out
from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.backbone import attention
from lsat_ray.backbone.precision import native_bfloat16
from lsat_ray.prompts.batch import Encoded, collate
from lsat_ray.prompts.encode import Encoder

MARGIN = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest error of the margins against padded float32 (root mean square), as a share of their spread."""
GRADIENT = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest error of a LoRA factor's gradient as a share of its norm."""


class Bench:
    """What the parts share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.toy: bool = options.toy
        self.device = torch.device(options.device)
        self.dtype = "bfloat16" if self.device.type == "cuda" else "auto"
        self.rows = 160 if self.toy else 6000
        self.batch = 8 if self.toy else 32
        self.rounds, self.seconds = (1, 0.0) if self.toy else (3, 3.0)
        self._grounds: dict[tuple[str, str], Ground] = {}

    def options(self, shape: str, dtype: str | None = None) -> argparse.Namespace:
        """Return the options of the throughput benchmark for a shape (the toy shape in a toy run)."""
        words = ["--shape", "toy" if self.toy else shape, "--device", str(self.device), "--dtype", dtype or self.dtype]
        words += ["--rows", str(self.rows), "--batch", str(self.batch), "--rounds", str(self.rounds)]
        return train_throughput.parse([*words, "--seconds", str(self.seconds), "--no-levers"])

    def ground(self, shape: str, dtype: str | None = None) -> Ground:
        """Return backbone and encodings; the last one is kept, the others are let go."""
        key = (shape, dtype or self.dtype)
        if key not in self._grounds:
            self.let_go()
            self._grounds[key] = prepare(self.options(*key))
        return self._grounds[key]

    def let_go(self) -> None:
        """Free the device's memory."""
        self._grounds.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def timed(self, do: Callable[[], object], least: float | None = None) -> float:
        """Return the median seconds of a call, warmed up, over at least that many seconds."""
        do()
        spent: list[float] = []
        while len(spent) < 3 or sum(spent) < (self.seconds if least is None else least):
            began = clock(self.device)
            do()
            spent.append(clock(self.device) - began)
        return float(np.median(spent))


def facts(bench: Bench) -> dict[str, Any]:
    """Describe machine, software and commit."""
    native, why = native_bfloat16(bench.device)
    dtype = torch.bfloat16 if native else torch.float32
    size = 256 if bench.toy else None
    peak = matmul_peak(bench.device, size, 0.05 if bench.toy else 1.0, dtype)
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    tree = machine(bench.device, torch.get_num_threads(), peak)
    tree |= {"native_bfloat16": native, "why": why, "peak_of": str(dtype), "commit": done.stdout.strip() or None}
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        tree |= {"gpu_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return tree


def parity(bench: Bench) -> dict[str, Any]:
    """Compare margins and gradients of every way to compute with padded float32, prefix shared, nothing recomputed."""
    ground = bench.ground("20m", "float32")
    wide = ground.model
    randomise(wide)
    half = copy.deepcopy(wide)
    for parameter in half.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    found: dict[str, Any] = {}
    for layout, encoded in ground.encoded.items():
        exact = computed(wide, encoded)
        for dtype, model in (("float32", wide), ("bfloat16", half)):
            for way in ("padded", "recomputed", *(["packed", "prefix_written_out"] if layout == "exact" else [])):
                model.packing, model.checkpointing = way == "packed", way == "recomputed"
                given = written_out(encoded) if way == "prefix_written_out" else encoded
                errors = compared(computed(model, given), exact)
                errors["ok"] = errors["margin"] <= MARGIN[dtype] and errors["gradient"] <= GRADIENT[dtype]
                found[f"{layout} {dtype} {way}"] = errors
        wide.packing = wide.checkpointing = False
    bench.let_go()
    tolerances = {"margin": MARGIN, "gradient": GRADIENT}
    return {"ok": all(one["ok"] for one in found.values()), "tolerances": tolerances, "ways": found}


def randomise(model: AdaptedBackbone) -> None:
    """Give the training slot an update that is not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.slot_parameters().items():
            if ".lora_B." in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def computed(model: AdaptedBackbone, encoded: Encoded, rows: int = 24) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return margins and LoRA gradients of the first sequences."""
    model.train()
    batch = collate(encoded, np.arange(min(rows, len(encoded)))).to(model.device)
    logits = model(batch)
    loss = functional.cross_entropy(logits, batch.label.long())
    grads = torch.autograd.grad(loss, list(model.slot_parameters().values()))
    return (logits[:, 1] - logits[:, 0]).detach(), [g.float() for g in grads]


def compared(found: tuple[torch.Tensor, list[torch.Tensor]], exact: tuple[torch.Tensor, list[torch.Tensor]]) -> Any:
    """Return the errors that `MARGIN` and `GRADIENT` bound."""
    margin = (found[0] - exact[0]).square().mean().sqrt() / exact[0].std()
    pairs = [(one, two) for one, two in zip(found[1], exact[1], strict=True) if float(two.norm())]
    return {"margin": float(margin), "gradient": max(float((a - b).norm() / b.norm()) for a, b in pairs)}


def throughput(shape: str) -> Callable[[Bench], dict[str, Any]]:
    """Return the part that measures targets/s against HF Trainer + PEFT, MFU, and memory against its estimate."""

    def part(bench: Bench) -> dict[str, Any]:
        options, ground = bench.options(shape), bench.ground(shape)
        found = train_throughput.methods(ground, levers=False)
        turns = train_throughput.here(found, ground.device)
        peak = train_throughput.measure(found, turns, ground, options, 256 if bench.toy else None)
        tree = train_throughput.report(found, ground, options, peak)
        tree["memory"] = memory(ground, tree["methods"]["exact"]["peak_mib"])
        return tree

    return part


def memory(ground: Ground, peak_mib: float) -> dict[str, Any]:
    """Compare the estimate for a step of the exact layout with what it keeps, and on a GPU with the peak."""
    from lsat_ray.config import EngineConfig, PromptConfig, Recipe
    from lsat_ray.training.memory import estimate, kept

    encoded = ground.encoded["exact"]
    rows = np.argsort(-encoded.lengths)[: ground.batch]
    prompt = PromptConfig(max_tokens=max(32, int(encoded.lengths[rows[0]]) + len(encoded.prefix) // ground.batch))
    need = estimate(ground.model, EngineConfig(workers=1), Recipe(batch_size=ground.batch), prompt, 0)
    truth = kept(ground.model, collate(encoded, rows).to(ground.device))
    out = {"estimate_mib": need.total / 2**20, "activations_mib": need.activations / 2**20, "kept_mib": truth / 2**20}
    out["activations_over_kept"] = need.activations / truth
    if ground.device.type == "cuda":  # elsewhere the peak is that of the whole process
        out |= {"peak_mib": peak_mib, "estimate_over_peak": need.total / 2**20 / peak_mib}
    return out


def packing(bench: Bench) -> dict[str, Any]:
    """Time a training step of the exact layout packed (the variable-length kernel on a GPU) and padded."""
    ground = bench.ground("1b")
    model, encoded = ground.model, ground.encoded["exact"]
    batch = collate(encoded, np.arange(4 * bench.batch)).to(bench.device)
    out: dict[str, Any] = {"real_tokens": int(encoded.lengths[: 4 * bench.batch].sum()), "padded": batch.tokens.numel()}
    for name, packed in (("padded_s", False), ("packed_s", True)):
        model.packing = packed
        out[name] = bench.timed(lambda: computed_on(model, batch))
    model.packing = False
    return out | {"gain": out["padded_s"] / out["packed_s"]}


def computed_on(model: AdaptedBackbone, batch: Any) -> None:
    """Run forward and backward once."""
    model.train()
    loss = functional.cross_entropy(model(batch), batch.label.long())
    torch.autograd.grad(loss, list(model.slot_parameters().values()))


def kept_weights(bench: Bench) -> dict[str, Any]:
    """Time a training step with attention weights kept (products) and with torch's kernel."""
    ground, before = bench.ground("1b"), attention.KEEPING
    out: dict[str, Any] = {}
    for layout, encoded in ground.encoded.items():
        batch = collate(encoded, np.arange(min(bench.batch, len(encoded)))).to(bench.device)
        times = {}
        try:
            for name, kinds in (("kernel_s", ()), ("kept_s", (bench.device.type,))):
                attention.KEEPING = kinds  # type: ignore[assignment]
                times[name] = bench.timed(lambda batch=batch: computed_on(ground.model, batch))  # type: ignore[misc]
        finally:
            attention.KEEPING = before
        out[layout] = times | {"gain": times["kernel_s"] / times["kept_s"]}
    return out


def pinned(bench: Bench) -> dict[str, Any]:
    """Time the way of a batch to the device, pinned as `Batch.to` does it, and not."""
    ground = bench.ground("1b")
    batch = collate(ground.encoded["stream"], np.arange(min(bench.batch, len(ground.encoded["stream"]))))
    fields = [t for t in (batch.prefix, batch.tokens, batch.position, batch.mask, batch.answer) if t is not None]
    ours = bench.timed(lambda: batch.to(bench.device))
    plain = bench.timed(lambda: [t.to(bench.device) for t in fields])
    return {"pinned_s": ours, "plain_s": plain, "bytes": sum(t.numel() * t.element_size() for t in fields)}


def scoring(bench: Bench) -> dict[str, Any]:
    """Time bulk scoring, ranking 1,000 candidates for a user, and a swap of the adapter."""
    from lsat_ray.adapters.store import AdapterStore
    from lsat_ray.config import PromptConfig
    from lsat_ray.scoring.model import Model
    from lsat_ray.scoring.prefix import Ask, Event
    from lsat_ray.scoring.recommender import Recommender
    from lsat_ray.scoring.score import score

    ground = bench.ground("1b")
    model, titles = ground.model, ground.periods.titles
    randomise(model)
    adapter, encoded = model.snapshot(), ground.encoded["exact"]
    spent = bench.timed(lambda: score(model, adapter, encoded))
    count = 20 if bench.toy else 1000
    history = tuple(Event(title, i % 2 == 0) for i, title in enumerate(titles[:10]))
    ask = Ask(history, tuple(f"{titles[i % len(titles)]} {i}" for i in range(count)))
    encoder = Encoder(ground.tokenizer, PromptConfig(), titles)
    with tempfile.TemporaryDirectory() as folder:
        recommender = Recommender(model, AdapterStore(Path(folder)))
        ranked = bench.timed(lambda: recommender.rank(Model("frozen", 0, "frozen"), encoder, ask))
    return {
        "rows_per_s": len(encoded.row) / spent,
        f"rank_{count}_s": ranked,
        "swap_s": bench.timed(lambda: model.wear(adapter)),
    }


def replayed(bench: Bench) -> dict[str, Any]:
    """Run the default replay by the local backend on this device."""
    import pandas as pd

    from lsat_ray import config as configs
    from lsat_ray.runs.local import LocalBackend
    from lsat_ray.runs.replay import replay

    bench.let_go()
    place = Path(__file__).resolve().parent.parent / "jobs" / "configs"
    device = f"backbone.device={bench.device}"
    config = configs.load(place / ("smoke.yaml" if bench.toy else "synthetic.yaml"), ["engine.backend=local", device])
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        run = replay(config, Path(folder), LocalBackend(config), lambda line: print(f"  {line}", flush=True))
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        auc = pd.read_parquet(run / "metrics.parquet").groupby("strategy")["auc"].mean()
    return {**spent, "auc": {str(name): float(value) for name, value in auc.items()}}


PARTS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "machine": (facts, 0.2),
    "parity": (parity, 1),
    "throughput_1b": (throughput("1b"), 3),
    "packing": (packing, 0.5),
    "kept_weights": (kept_weights, 0.5),
    "scoring": (scoring, 1),
    "pinned": (pinned, 0.3),
    "throughput_7b": (throughput("7b"), 5),
    "throughput_20m": (throughput("20m"), 2),
    "throughput_0.1b": (throughput("0.1b"), 2),
    "replay": (replayed, 5),
}
"""Parts, the most valuable first (those of one shape together, it is built once), and a guess of their minutes."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that fit, writing after each."""
    bench, began = Bench(options), time.perf_counter()
    tree: dict[str, Any] = {"command": " ".join(["python", "benchmarks/gpu.py", *options.words]), "parts": {}}
    for name, (part, guess) in PARTS.items():
        if options.only and name not in options.only:
            continue
        left = options.minutes - (time.perf_counter() - began) / 60
        if left < (0 if bench.toy else guess):
            tree["parts"][name] = {"skipped": f"{left:.1f} minutes were left, {guess} are needed"}
        else:
            print(f"{name} ...", flush=True)
            start = time.perf_counter()
            try:
                found = part(bench)
            except Exception as error:  # noqa: BLE001 - the parts that follow still tell something
                bench.let_go()
                found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-3000:]}
            tree["parts"][name] = {**found, "part_seconds": round(time.perf_counter() - start, 1)}
        options.json.write_text(json.dumps(tree, indent=2) + "\n")
    return tree


def main(words: list[str] | None = None) -> int:
    """Read the command line, run, and say what failed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="the toy shape everywhere, one short round")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts alone")
    options = parser.parse_args(words)
    options.words = words
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --toy tries the parts in small")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    tree = run(options)
    bad = [n for n, p in tree["parts"].items() if "error" in p or p.get("ok") is False]
    skipped = [n for n, p in tree["parts"].items() if "skipped" in p]
    print(f"written to {options.json}; failed: {', '.join(bad) or 'none'}; skipped: {', '.join(skipped) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
