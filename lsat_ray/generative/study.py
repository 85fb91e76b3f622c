"""Train what the rules want block by block, search, and write the table; everything stored is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import factor_arithmetic
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import locate
from lsat_ray.config import Experiment
from lsat_ray.data import expand
from lsat_ray.errors import LsatError
from lsat_ray.generative import backbone, synthetic
from lsat_ray.generative.blocks import PUBLISHED, Blocks, check, read
from lsat_ray.generative.encode import encode_histories, encode_targets
from lsat_ray.generative.fit import fit
from lsat_ray.generative.metrics import FIELDS, above_items, above_target, interval, ranking_metrics
from lsat_ray.generative.model import GenerativeModel, joined, parted
from lsat_ray.generative.rules import RULES, Plan, Setting
from lsat_ray.generative.search import Found, beam_search
from lsat_ray.generative.spec import GenerativeSpec, Task
from lsat_ray.generative.trie import Trie
from lsat_ray.prompts.batch import Encoded, collate, token_budget_batches

NAIVE = ("popular", "popular-recent")
"""Rows without a model: the items that occur most often in all training targets so far, or in the newest block's."""
COLUMNS = ["strategy", "block", *FIELDS, "low", "high", "seeds"]

Tell = Callable[[str], None]


def load_blocks(config: Experiment) -> Blocks:
    """Return the log under `data.path`, checked where its counts are published, or a synthetic one without a path."""
    if not config.data.path:
        return synthetic.generate()
    folder = expand(config.data.path)
    blocks = read(folder)
    if folder.name in PUBLISHED:
        check(blocks, folder.name)
    return blocks


def run_blocks(config: Experiment, root: Path, progress: Tell | None = None) -> pd.DataFrame:
    """Run the experiment's strategies and seeds over all blocks; return the table, also written as `table.csv`.

    Every adapter and every search is in a store under `root` by the digest of what decides it, so that the same
    command continues where an earlier one ended.

    Returns:
        One row for each (strategy, tested block as published) and one with block `mean`: Hit and NDCG averaged over
        seeds, and the 95 % bootstrap interval over users of NDCG@10. `groups.csv` holds NDCG@10 of new, dormant and
        active users, `paired.csv` the paired differences of NDCG@10 from `generative.reference`.

    Raises:
        LsatError: when a strategy is unknown or the log is broken.
    """
    unknown = [s for s in config.strategies if s not in RULES and s not in NAIVE]
    if unknown:
        raise LsatError(f"strategies: {unknown[0]!r} is unknown; known: {', '.join([*NAIVE, *RULES])}")
    run = Run(config, load_blocks(config), Path(root), progress or (lambda line: None))
    frames = [
        run.metrics(name, seed, t)
        for t in run.periods()
        for seed in config.seeds
        for name in config.strategies
        if name in RULES or seed == config.seeds[0]
    ]
    values = pd.concat(frames, ignore_index=True)
    table = summarise(values)
    for name, frame in (
        ("table", table),
        ("groups", by_group(values)),
        ("paired", paired(values, config.generative.reference)),
    ):
        frame.to_csv(Path(root) / f"{name}.csv", index=False, float_format="%.6f")
    return table


class Run:
    """One experiment: the model with its training slot, and the stores."""

    def __init__(self, config: Experiment, blocks: Blocks, root: Path, tell: Tell) -> None:
        self.config, self.blocks, self.tell = config, blocks, tell
        own = config.generative
        self.task = Task(own.split, own.history, own.temperature, own.train_codes)
        self.adapters, self.searches = AdapterStore(root / "adapters"), AdapterStore(root / "searches")
        nano = config.backbone.path == "nano"
        shape = config.backbone.nano
        folder = backbone.build(blocks, shape, root / "backbone", own.history, own.split, tell) if nano else None
        self.folder = folder or locate(config.backbone)
        loaded = backbone.load(config.backbone, self.folder, blocks, text=not nano)
        self.fingerprint = loaded.fingerprint
        self.model = GenerativeModel(loaded, config.lora, own.train_codes, config.engine.checkpointing)
        self.trie = Trie.build(blocks.codes)
        self.size = np.bincount(self.trie.leaf, minlength=len(self.trie))

    def periods(self) -> Iterable[int]:
        """Return the periods whose models are tested; the tested blocks are 1, 2, ... under either split."""
        last = self.blocks.count
        return range(1, last) if self.task.split == "next-period" else range(2, last + 1)

    def setting(self, seed: int) -> Setting:
        """Return what the specs of a seed have in common."""
        recipe = self.config.recipe
        later = recipe.model_copy(update={"lr": self.config.generative.later_lr or recipe.lr})
        return Setting(self.fingerprint, self.blocks.fingerprint, self.task, self.config.lora, recipe, later, seed)

    def metrics(self, name: str, seed: int, t: int) -> pd.DataFrame:
        """Return one line for each test of a model: strategy, seed, block, row, user, group, hit5, ..., ndcg10."""
        rows = self.blocks.tests(t, self.task.split)
        if name in NAIVE:
            found = self.popular(t, recent=name == "popular-recent", rows=len(rows))
        else:
            found = self.search(RULES[name](self.setting(seed), t), t, rows)
        target = self.trie.leaf[self.blocks.item[rows]]
        if self.config.generative.collisions == "item":
            values = ranking_metrics(*above_items(found.leaf, target, self.size))
        else:
            values = ranking_metrics(above_target(found.leaf, target))
        facts: dict[str, Any] = {"strategy": name, "seed": seed, "block": int(self.blocks.block[rows[0]])}
        means = ", ".join(f"{k} {v.mean():.4f}" for k, v in values.items())
        self.tell(f"block {facts['block']} seed {seed} {name}: {means}")
        who = {"row": rows, "user": self.blocks.user[rows], "group": self.blocks.groups(rows)}
        return pd.DataFrame({**who, **values}).assign(**facts)

    def popular(self, t: int, recent: bool, rows: int) -> Found:
        """Return the same most frequent leaves of the training targets for every test."""
        slices = [(i, "train") for i in range(t if recent else 1, t + 1)]
        known = self.trie.leaf[self.blocks.item[self.blocks.select(slices, self.task.split)]]
        count = np.bincount(known, minlength=len(self.trie))
        best = np.argsort(-count, kind="stable")[: self.config.generative.beams]
        score = np.log(np.maximum(count[best], 1) / count.sum()).astype(np.float32)
        return Found(np.tile(best, (rows, 1)), np.tile(score, (rows, 1)), np.full(rows, len(best)))

    def adapter(self, spec: GenerativeSpec) -> Adapter:
        """Return an adapter from the store, trained first where it is not there; its parents before it."""
        if spec.digest not in self.adapters:
            above = {p: self.adapter(p) for p in spec.parents()}  # type: ignore[arg-type]
            initial = above[spec.init] if spec.init else None
            frozen = [above[p] for p in spec.frozen.adapters] if spec.frozen else []
            fitted = fit(spec, self.model, self.blocks, self.config.engine, initial, frozen)
            facts = {
                "loss": fitted.loss, "best_step": fitted.best_step, "steps": fitted.steps,
                "history": fitted.history, "penalty": fitted.penalty, "seconds": fitted.seconds,
            }  # fmt: skip
            self.adapters.publish(spec, fitted.adapter, facts, str(self.folder))
            self.tell(f"{spec}: validation loss {fitted.loss:.4f}, step {fitted.best_step} of {fitted.steps}")
        return self.adapters.load(spec.digest)

    def search(self, plan: Plan, t: int, rows: np.ndarray) -> Found:
        """Return what a plan finds for the tests, from the store where it is there."""
        beams = self.config.generative.beams
        what = {
            "adapters": [s.digest for s in plan.adapters], "merge": plan.merge, "grid": plan.grid,
            "beams": beams, "validation": t, "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        if digest not in self.searches:
            adapters = [self.adapter(s) for s in plan.adapters]
            weights = self.choose(plan, adapters, t)
            if plan.merge == "factor-arithmetic":
                adapters, mixed = [merge_factors(adapters, weights)], (1.0,)
            else:
                mixed = weights  # type: ignore[assignment]
            prompts = encode_histories(self.blocks, rows, self.model.codes, self.task.history)
            found = beam_search(self.model, prompts, self.trie, beams, adapters, mixed)
            state = {k: torch.from_numpy(v) for k, v in found._asdict().items()}
            best = (rows, found.score[:, 0])
            self.searches.publish_state(digest, what, state, {"weights": list(weights)}, best)
        state = self.searches.load_state(digest)
        return Found(*(state[k].numpy() for k in Found._fields))

    def choose(self, plan: Plan, adapters: list[Adapter], t: int) -> tuple[float, ...]:
        """Return the weights of the grid under which V_t is likeliest; the first of equals."""
        if len(plan.grid) == 1:
            return plan.grid[0]
        rows = self.blocks.rows(t, "validation", self.task.split)
        encoded = encode_targets(self.blocks, rows, self.model.codes, self.task.history)
        if plan.merge == "output-ensemble":
            each = np.stack([self.likelihood(a, encoded) for a in adapters])
            with np.errstate(divide="ignore"):
                values = [np.logaddexp.reduce(each + np.log(np.array(w))[:, None]).mean() for w in plan.grid]
        else:
            values = [self.likelihood(merge_factors(adapters, w), encoded).mean() for w in plan.grid]
        return plan.grid[int(np.argmax(values))]

    def likelihood(self, adapter: Adapter, encoded: Encoded) -> np.ndarray:
        """Return the log-probability of each target's codes, float64 [targets]."""
        self.model.wear(adapter)
        self.model.eval()
        value = np.empty(len(encoded.row))
        with torch.no_grad():
            for group in token_budget_batches(encoded, self.config.engine.batch_tokens):
                batch = collate(encoded, group).to(self.model.device)
                logp = torch.log_softmax(self.model(batch), dim=-1)
                value[batch.index] = logp.gather(1, batch.label.long()[:, None])[:, 0].cpu().numpy()
        return value.reshape(-1, self.trie.levels).sum(1)


def merge_factors(adapters: list[Adapter], weights: tuple[float, ...]) -> Adapter:
    """Average A, B and the codes' rows entry by entry (LSAT-TA on this task)."""
    lora, rows = zip(*(parted(a) for a in adapters), strict=True)
    merged = {k: torch.stack([w * r[k] for r, w in zip(rows, weights, strict=True)]).sum(0) for k in rows[0]}
    return joined(factor_arithmetic(lora, weights), merged)


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `run_blocks` from its lines."""
    out = []
    for name, own in values.groupby("strategy", sort=False):
        blocks = own.groupby("block")
        seeds = own["seed"].nunique()
        for block, part in [*blocks, ("mean", own)]:
            means = part.groupby("block")[list(FIELDS)].mean().mean()
            low, high = interval(*_by_period(part))
            out.append([name, block, *means, low, high, seeds])
    return pd.DataFrame(out, columns=COLUMNS)


def by_group(values: pd.DataFrame) -> pd.DataFrame:
    """Return NDCG@10 and tests of new, dormant and active users, all blocks together."""
    grouped = values.groupby(["strategy", "group"], sort=False)
    return grouped.agg(ndcg10=("ndcg10", "mean"), tests=("row", "nunique")).reset_index()


def paired(values: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return each strategy's mean NDCG@10 minus the reference's, with the paired bootstrap interval over users."""
    average = values.groupby(["strategy", "block", "row", "user"], sort=False)["ndcg10"].mean().reset_index()
    base = average[average["strategy"] == reference].drop(columns="strategy")
    out = []
    for name, own in average.groupby("strategy", sort=False):
        if name == reference or base.empty:
            continue
        both = own.merge(base, on=["block", "row", "user"], suffixes=("", "_base"), validate="1:1")
        both["ndcg10"] -= both.pop("ndcg10_base")
        low, high = interval(*_by_period(both))
        out.append([name, reference, both.groupby("block")["ndcg10"].mean().mean(), low, high])
    return pd.DataFrame(out, columns=["strategy", "reference", "difference", "low", "high"])


def _by_period(values: pd.DataFrame) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return NDCG@10, averaged over seeds, and users of each block."""
    each = [p.groupby(["row", "user"])["ndcg10"].mean().reset_index() for _, p in values.groupby("block")]
    return [e["ndcg10"].to_numpy() for e in each], [e["user"].to_numpy() for e in each]
