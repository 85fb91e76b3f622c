"""Measure what Table 2 of the LSAT paper costs end to end, the way of the paper's code and ours, in one run.

    python benchmarks/table2_cost.py --json benchmarks/results/table2_cost.json

The reference way is that of the paper's code (`table2_reference.py`). `wall_ratio` and `cpu_ratio` are of all that it
does when every row trains and scores on its own: 82 trainings with 20 periods and m = 10. The code leaves it to its
user to reuse what rows share: folders are named by what an adapter was trained on, `arithmetic.py` reads those of other
rows, and `evaluate.py` saves predictions that can be averaged. For a user who reuses everything there are
`wall_ratio_once` and `cpu_ratio_once`: every distinct training and prediction counts once, at the mean of what it took.

Ours is a study over the local backend: 39 distinct adapters, the lean engine, stored scores. Both have the same log,
backbone, type (`--reference-dtype` gives the reference another), splits, recipe (batch, epochs, learning rate, when to
validate), machine and threads. The code validates 1,000 rows after 23 steps of 128, a third of what it trains on, and
more when it fine-tunes; here both validate a fifth of a period after every step of 32, 10 rows by default. The backbone
is built, and what either way imports is loaded, before the clock starts. Nothing is extrapolated: the log is so short
that both end. Factors are of processor time: `sharing` is all trainings of the reference way over its distinct ones,
`engine` these over ours.

With `--noise N` our way is repeated afterwards with N other seeds. `auc_sd` is a row's standard deviation over all of
them; `auc_equal` says whether `auc_gap`, a difference of two runs, is within 2 sqrt(2) of these. The two ways do not
minimise the same: ours has the loss over {No, Yes} at the answer, the code's over the vocabulary, by default on the
whole text. `--reference-loss answer` is its other mode, for the response alone (`train_on_inputs=False`), of as many
logits; `--loss language` gives ours the code's default. The backbone responds with "Yes." or "No.", as an
instruction-tuned model does: one that has not learned it is taught that first by a loss over the vocabulary, and little
else (`answer_mass` says how well it has).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq

from benchmarks.measuring import machine, matmul_peak, own_process
from benchmarks.table2_reference import STAGES, Cost, Reference, Row, responses, start_seconds, tokenised
from lsat_ray import config as configs
from lsat_ray.backbone import nano
from lsat_ray.backbone.load import dtype_of, load
from lsat_ray.config import Experiment
from lsat_ray.prompts.encode import Encoder
from lsat_ray.runs import steps
from lsat_ray.runs.check import check
from lsat_ray.runs.context import Run, opened
from lsat_ray.runs.local import LocalBackend
from lsat_ray.runs.study import needed
from lsat_ray.strategies.untrained import Frozen

ROWS = ("full-retraining", "fine-tuning", "short-term", "long-term", "lsat-en", "lsat-en-full", "lsat-ta")
LAMBDAS = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]"
"""Of arithmetic.py; both ways choose among them, for alpha too."""


ANSWERING = 60
"""Steps in which the backbone learns to respond with Yes or No."""


def ours(run: Run) -> tuple[dict[str, float], Cost, set[str]]:
    """Return the mean AUC of every row, the costs and the adapters' digests, by the steps of a study."""
    cost, last, seed = Cost(), run.periods.count, run.config.seeds[0]
    rows = tuple(s for s in run.strategies[seed] if s.name != Frozen.name)  # the paper's, and no naive ones
    run = replace(run, strategies={seed: rows}, fixed={})
    for t in range(1, last + 1):
        run.backend.arrive(t)
    specs = needed(run)
    with cost.stage("train"):
        steps.train(run, last, specs)
    with cost.stage("search"):
        steps.choose(run, seed, range(run.config.first_test - 1, last))
    with cost.stage("score"):
        steps.measure(run, seed, run.tested)
    found = {}
    for strategy in run.strategies[seed]:
        records = [run.ledger.get(seed, strategy.name, t, "score") for t in run.tested]
        found[strategy.name] = float(np.mean([r["auc"] for r in records if r]))
        print(f"ours, seed {seed}: {strategy.name} {found[strategy.name]:.4f}", flush=True)
    return found, cost, {s.digest for s in specs}


def settings(options: argparse.Namespace) -> Experiment:
    """Return the experiment: the embedded stream, cut short, the seven rows."""
    long = options.periods // 2
    shape = f"hidden: {options.hidden}, layers: {options.layers}, heads: {options.heads}, "
    shape += f"vocabulary: {options.vocabulary}, epochs: 1"
    recipe = f"lr: 0.005, epochs: {options.epochs}, batch_size: 32, select: auc, loss: {options.loss}"
    words = [
        f"data.keep_last={options.periods * options.samples}",
        f"data.synthetic={{users: 60, items: 80, warmup: {options.warmup}, half_life: {8 * options.samples}}}",
        f"periods={{number: {options.periods}, validation: 0.2}}",
        f"replay.long_periods={long}",
        "study.every_period=false",
        f"strategies=[{', '.join(options.rows)}]",
        f"backbone={{device: cpu, dtype: {options.dtype}, nano: {{{shape}}}}}",
        f"recipe={{{recipe}, eval_every: {options.every}, patience: 100000}}",
        f"search.grid={LAMBDAS}",
        f"engine={{backend: local, kind: torch, workers: 1, sessions: 1, threads: {options.threads}}}",
    ]
    return configs.load(None, words, "table2_cost")


def built(config: Experiment, options: argparse.Namespace, folder: Path) -> tuple[Experiment, float]:
    """Build a nano backbone as a replay would, but with a row of the head for every token of `--vocabulary`.

    A short log has fewer; a pretrained model's vocabulary does not depend on the log.

    Returns:
        The experiment with this backbone, and the probability that the backbone gives to Yes and No together.
    """
    periods, shape = check(config).periods, config.backbone.nano
    samples = periods.warmup()
    tokenizer = nano.build_tokenizer(nano.texts(periods.titles, samples, config.prompt.item_word), shape.vocabulary)
    model = nano.build_model(shape, tokenizer)
    model.resize_token_embeddings(options.vocabulary, mean_resizing=False)
    encoder = Encoder(tokenizer, config.prompt, periods.titles)
    nano.pretrain(model, tokenizer, encoder(samples), shape)
    mass = answering(model, tokenizer, tokenised(encoder, samples, responses(tokenizer), "answer"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"path": str(folder)})}), mass


def answering(model: Any, tokenizer: Any, rows: list[Row]) -> float:
    """Train a backbone to give one of the two responses, to their end, out of its whole vocabulary.

    Returns:
        The probability of Yes and No together on the last batch.
    """
    end = responses(tokenizer)
    size, words = len(end[0]), torch.tensor([one[0] for one in end])
    collate, order = DataCollatorForSeq2Seq(tokenizer, padding=True), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mass = torch.zeros(())
    model.train()
    for _ in range(ANSWERING):
        batch = collate([rows[i] for i in order.choice(len(rows), 32, replace=False)])
        ids = batch["input_ids"]
        found = model(ids, attention_mask=batch["attention_mask"], logits_to_keep=size + 1).logits[:, :-1]
        mass = found[:, 0].detach().softmax(-1)[:, words].sum(1).mean()
        optimizer.zero_grad()
        functional.cross_entropy(found.flatten(0, 1), ids[:, -size:].flatten()).backward()
        optimizer.step()
    model.eval()
    return float(mass)


def ours_alone(config: Experiment, root: Path) -> tuple[dict[str, float], Cost, set[str]]:
    """Return what `ours` does, in a process that does nothing else."""
    torch.set_num_threads(config.engine.threads)
    import sklearn.metrics  # noqa: F401  (both ways need it, and neither pays for its import)

    with opened(config, root, LocalBackend(config), print, serve=False) as run:
        return ours(run)


def reference_alone(config: Experiment, root: Path, dtype: str, over: str) -> tuple[dict[str, float], Cost]:
    """Return every row's mean AUC and the costs of the reference way, in a process that does nothing else."""
    torch.set_num_threads(config.engine.threads)
    import sklearn.metrics  # noqa: F401

    with opened(config, root, LocalBackend(config), print, serve=False) as run:
        backbone = load(config.backbone.model_copy(update={"dtype": dtype}), Path(str(config.backbone.path)))
        reference = Reference(run, backbone, over, root / "trainer")
        return reference.table(), reference.cost


def alone(do: Callable[..., Any], *given: Any) -> Any:
    """Return `do(*given)`, called in a fresh process: neither way meets the memory that the other leaves."""
    with own_process() as pool:
        return pool.submit(do, *given).result()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run both ways and return the tree that is written."""
    torch.set_num_threads(options.threads)
    config = asked = settings(options)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights = root / "backbone"
        config, mass = built(config, options, weights)
        mine, cost, digests = alone(ours_alone, config, root / "ours")
        dtype = options.reference_dtype or dtype_of(config.backbone)
        theirs, other = alone(reference_alone, config, root / "reference", dtype, options.reference_loss)
        start = start_seconds(weights)
        others = []
        for seed in range(1, 1 + options.noise):
            again = config.model_copy(update={"seeds": (seed,), "name": f"{config.name}{seed}"})
            others.append(alone(ours_alone, again, root / "ours")[0])
    assert {digest for name, digest in other.jobs if name == "train"} == digests, "both ways train the same adapters"
    wall, cpu = other.total / cost.total
    wall_once, cpu_once = other.once(*STAGES) / cost.total
    once = other.once("train")[1]
    gap = {name: mine[name] - theirs[name] for name in theirs}
    deviation = {name: float(np.std([m[name] for m in (mine, *others)], ddof=1)) for name in theirs if others}
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "wall_ratio": float(wall),
        "cpu_ratio": float(cpu),
        "wall_ratio_once": float(wall_once),
        "cpu_ratio_once": float(cpu_once),
        "sharing": float(other.stages["train"][1] / once),
        "engine": float(once / cost.stages["train"][1]),
        "scoring": float(other.stages["score"][1] / cost.stages["score"][1]),
        "search": float(other.stages["search"][1] / cost.stages["search"][1]),
        "auc_gap": gap,
        "auc_sd": deviation,
        "auc_equal": {name: abs(gap[name]) <= 8**0.5 * sd for name, sd in deviation.items()},
        "trainings": {"reference": other.trainings(), "ours": len(digests)},
        "auc": {"reference": theirs, "ours": mine},
        "wall_seconds": {"reference": other.to_json(0), "ours": cost.to_json(0)},
        "cpu_seconds": {"reference": other.to_json(1), "ours": cost.to_json(1)},
        "start_wall_seconds": start,
        "answer_mass": mass,
        "reference_dtype": dtype,
        "reference_loss": options.reference_loss,
        "config": json.loads(asked.model_dump_json()),
        "command": " ".join(["python", "benchmarks/table2_cost.py", *options.words]),
        "commit": done.stdout.strip() or None,
        "machine": machine(torch.device("cpu"), options.threads, matmul_peak(torch.device("cpu"), 512, 0.2)),
    }


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--periods", type=int, default=20, help="20 give the paper's 82 and 39 trainings")
    parser.add_argument("--samples", type=int, default=50, help="per period; a fifth of them is its validation split")
    parser.add_argument("--warmup", type=int, default=600, help="samples that the backbone is built from")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="steps of 32 rows from one validation to the next")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=768)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    types = ["auto", "float32", "bfloat16"]
    parser.add_argument("--dtype", choices=types, default="float32", help="of our backbone")
    parser.add_argument("--reference-dtype", choices=types[1:], help="of the reference's (default: of ours)")
    parser.add_argument("--loss", choices=["answer", "language"], default="answer", help="of our way")
    parser.add_argument("--reference-loss", choices=["answer", "language"], default="language")
    parser.add_argument("--noise", type=int, default=0, help="other seeds that our way is repeated with")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    options.words = words
    return options


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure and write."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = parse(sys.argv[1:] if words is None else words)
    tree = compare(options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(tree, indent=2) + "\n")
    keys = ("wall_ratio", "cpu_ratio", "wall_ratio_once", "cpu_ratio_once", "sharing", "engine", "scoring", "search")
    print(", ".join(f"{k} {tree[k]:.2f}" for k in keys))
    return tree


if __name__ == "__main__":
    main()
