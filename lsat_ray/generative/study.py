"""What the blocks' table is made of: adapters, networks and searches, each found again in its store, and statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.merge import factor_arithmetic
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import fingerprint, locate
from lsat_ray.config import Experiment
from lsat_ray.data import expand
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.significance import holm
from lsat_ray.generative import backbone, sasrec
from lsat_ray.generative.blocks import PUBLISHED, Blocks, check, read
from lsat_ray.generative.encode import encode_histories, encode_targets
from lsat_ray.generative.fit import fit
from lsat_ray.generative.metrics import FIELDS, above_items, above_target, interval, p_value, ranking_metrics
from lsat_ray.generative.model import GenerativeModel, joined, parted
from lsat_ray.generative.rules import GRIDS, RULES, Plan, Setting
from lsat_ray.generative.sasrec import SasrecSpec
from lsat_ray.generative.search import Found, beam_search
from lsat_ray.generative.spec import GenerativeSpec, Task
from lsat_ray.generative.trie import Trie
from lsat_ray.prompts.batch import Encoded, collate, token_budget_batches
from lsat_ray.training.checkpoint import Checkpointer

NAIVE = ("popular", "popular-recent")
"""Rows without a model: the items that occur most often in all training targets so far, or in the newest block's."""
RIVALS = {f"sasrec/{rule}": rule for rule in ("pretrain", "full-retraining", "single-evolving")}
"""Rows of the trained rival, and the update rule of each."""
ROWS = (*NAIVE, *RIVALS, *RULES, *GRIDS)
"""All rows."""
COLUMNS = ["strategy", "block", *FIELDS, "low", "high", "seeds", "beams"]
"""Of the table; `beams` is 0 where all items are ranked and nothing is searched."""

Tell = Callable[[str], None]
Spec = GenerativeSpec | SasrecSpec
"""What a model of this task is a pure function of."""


class Measured(NamedTuple):
    """A row of the table on one block under one number of beams."""

    digest: str
    """Of what decides the ranking."""
    values: pd.DataFrame
    """One line per test: strategy, seed, beams, block, row, user, group, hit5, ..., ndcg10."""
    weights: list[float]
    """Chosen merge weights; empty without a model."""


def load_blocks(config: Experiment) -> Blocks:
    """Return the log under `data.path`, checked where its counts are published.

    Raises:
        LsatError: when the path is missing, a strategy is unknown, a setting has no meaning here, or the log is broken.
    """
    if unknown := [s for s in config.strategies if s not in ROWS]:
        raise LsatError(f"strategies: {unknown[0]!r} is unknown; known: {', '.join(ROWS)}")
    if config.recipe.select != "log-loss":
        raise LsatError(f"recipe.select: the generative task keeps the lowest loss; {config.recipe.select} is for AUC")
    for key, value in (("loss", "answer"), ("cadence", "own")):
        if (given := getattr(config.recipe, key)) != value:
            raise LsatError(f"recipe.{key}: {given} is of the other task; leave it at {value}")
    if not config.data.path:
        raise LsatError("data.path: missing; give a folder with block_0.json, ... and semantic_ids.json")
    folder = expand(config.data.path)
    blocks = read(folder)
    if folder.name in PUBLISHED:
        check(blocks, folder.name)
    return blocks


def weights(config: Experiment, blocks: Blocks, backbones: Path, tell: Tell) -> Path:
    """Return the folder of the backbone; the small one is built where it is not there yet."""
    if config.backbone.path != "nano":
        return locate(config.backbone)
    own = config.generative
    return backbone.build(blocks, config.backbone.nano, backbones, own.history, own.split, tell)


class Bench:
    """One experiment: what its rows need, the stores, and, once it is asked for, the model with its training slot."""

    def __init__(self, config: Experiment, blocks: Blocks, root: Path, folder: Path, tell: Tell) -> None:
        """Open the stores.

        Args:
            config: the experiment.
            blocks: its log.
            root: folder of the run, where `adapters`, `networks` and `searches` lie.
            folder: of the backbone (`weights`).
            tell: is told one line per step.
        """
        self.config, self.blocks, self.folder, self.tell = config, blocks, folder, tell
        self.engine = config.engine
        own = config.generative
        self.task = Task(own.split, own.history, own.temperature, own.train_codes)
        self.adapters, self.networks, self.searches = (
            AdapterStore(root / name) for name in ("adapters", "networks", "searches")
        )
        self.states = Checkpointer(root / "train" / "states", config.engine.checkpoint_every)
        torch.set_num_threads(config.engine.threads)
        self.fingerprint = fingerprint(folder, config.backbone)
        self.trie = Trie.build(blocks.codes)
        self.size = np.bincount(self.trie.leaf, minlength=len(self.trie))

    @cached_property
    def model(self) -> GenerativeModel:
        """The backbone with its training slot; loaded when something is to be fitted or searched."""
        config = self.config
        text = config.backbone.path != "nano"
        loaded = backbone.load(config.backbone, self.folder, self.blocks, text)
        return GenerativeModel(loaded, config.lora, config.generative.train_codes, config.engine.checkpointing)

    def periods(self) -> Iterable[int]:
        """Return the periods whose models are tested; the tested blocks are 1, 2, ... under either split."""
        last = self.blocks.count
        return range(1, last) if self.task.split == "next-period" else range(2, last + 1)

    def setting(self, seed: int) -> Setting:
        """Return what the specs of a seed have in common."""
        recipe = self.config.recipe
        later = recipe.model_copy(update={"lr": self.config.generative.later_lr or recipe.lr})
        return Setting(self.fingerprint, self.blocks.fingerprint, self.task, self.config.lora, recipe, later, seed)

    def beams(self, name: str) -> tuple[int, ...]:
        """Return the numbers of beams that a row is measured with; (0,) where nothing is searched."""
        return (0,) if name in NAIVE or name in RIVALS else self.config.generative.beams

    def seeds(self, name: str) -> tuple[int, ...]:
        """Return the seeds of a row; one where nothing is random."""
        return self.config.seeds[:1] if name in NAIVE else self.config.seeds

    def rule(self, name: str, seed: int, t: int) -> str:
        """Return the update rule of a row: of a grid, the one that V_2 prefers, trained first; the first of equals."""
        if name not in GRIDS:
            return RIVALS.get(name, name)
        links = self.tried(name, seed, t)
        if not links:  # D_1 knows no penalty, and V_2 is the future
            return GRIDS[name][0]
        for spec in links:
            self.adapter(spec)
        losses = [self.adapters.manifest(spec.digest)["facts"]["loss"] for spec in links]
        return GRIDS[name][int(np.argmin(losses))]

    def tried(self, name: str, seed: int, t: int) -> list[GenerativeSpec]:
        """Return the adapters of D_2 among which a grid chooses; none of another row, and none before period 2."""
        rules = GRIDS.get(name, ()) if t >= 2 else ()
        return [RULES[rule](self.setting(seed), 2).adapters[0] for rule in rules]

    def plan(self, name: str, seed: int, t: int) -> Plan:
        """Return the adapters of a row after period t, and how they are merged."""
        return RULES[self.rule(name, seed, t)](self.setting(seed), t)

    def specs(self, name: str, seed: int, t: int) -> list[Spec]:
        """Return the models of a row after period t."""
        if name in NAIVE:
            return []
        adapters = self.plan(name, seed, t).adapters
        return [SasrecSpec(a, self.config.baselines) if name in RIVALS else a for a in adapters]

    def has(self, spec: Spec) -> bool:
        """Return whether a model is in its store."""
        return spec.digest in (self.networks if isinstance(spec, SasrecSpec) else self.adapters)

    def train(self, spec: Spec) -> None:
        """Train a model that is not in its store, what it starts from before it."""
        if isinstance(spec, SasrecSpec):
            self.network(spec)
        else:
            self.adapter(spec)

    def models(self, name: str, seed: int, t: int) -> list[dict[str, Any]]:
        """Train what a row needs after period t, parents first.

        Returns:
            digest, loss and best step or epoch of each model; the ratio of penalty to loss where there is a penalty.
        """
        out: list[dict[str, Any]] = []
        for spec in self.specs(name, seed, t):
            self.train(spec)
            if isinstance(spec, SasrecSpec):
                facts = self.networks.manifest(spec.digest)["facts"]
                out.append({"digest": spec.digest, "loss": facts["loss"], "best_epoch": facts["best_epoch"]})
            else:
                facts = self.adapters.manifest(spec.digest)["facts"]
                out.append({"digest": spec.digest, "loss": facts["loss"], "best_step": facts["best_step"]})
                if facts.get("penalty_ratio") is not None:
                    out[-1]["penalty_ratio"] = facts["penalty_ratio"]
        return out

    def measure(self, name: str, seed: int, t: int, beams: int) -> Measured:
        """Return the metrics of each test of a row's models after period t."""
        rows = self.blocks.tests(t, self.task.split)
        digest = self.find(name, seed, t, beams)
        state = self.searches.load_state(digest)
        found = Found(*(state[k].numpy() for k in Found._fields))
        chosen = self.searches.manifest(digest)["facts"]["weights"]
        target = self.trie.leaf[self.blocks.item[rows]]
        if self.config.generative.collisions == "item":
            values = ranking_metrics(*above_items(found.leaf, target, self.size))
        else:
            values = ranking_metrics(above_target(found.leaf, target))
        facts: dict[str, Any] = {
            "strategy": name,
            "seed": seed,
            "beams": beams,
            "block": int(self.blocks.block[rows[0]]),
        }
        who = {"row": rows, "user": self.blocks.user[rows], "group": self.blocks.groups(rows)}
        return Measured(digest, pd.DataFrame({**who, **values}).assign(**facts), chosen)

    def find(self, name: str, seed: int, t: int, beams: int) -> str:
        """Search with a row's models where it was not done; return the name of what was found in its store."""
        digest, what, plan = self.wanted(name, seed, t, beams)
        if digest not in self.searches:
            rows, weights = self.blocks.tests(t, self.task.split), tuple[float, ...]()
            if plan is None:
                found = self.popular(t, recent=name == "popular-recent", rows=len(rows))
            elif name in RIVALS:
                network = self.network(SasrecSpec(plan.adapters[0], self.config.baselines))
                found = sasrec.rank(network, self.blocks, rows, self.task.history, self.trie)
            else:
                found, weights = self.search(plan, t, rows, beams)
            state = {k: torch.from_numpy(v) for k, v in found._asdict().items()}
            best = (rows, found.score[:, 0])
            self.searches.publish_state(digest, what, state, {"weights": list(weights)}, best)
        return digest

    def wanted(self, name: str, seed: int, t: int, beams: int) -> tuple[str, dict[str, Any], Plan | None]:
        """Return a search's name in its store, all that decides it, and the row's plan (None without a model)."""
        rows = self.blocks.tests(t, self.task.split)
        what: dict[str, Any] = {"validation": t, "rows": hashlib.sha256(rows.tobytes()).hexdigest()}
        plan = None if name in NAIVE else self.plan(name, seed, t)
        if plan is None:
            what |= {"naive": name, "data": self.blocks.fingerprint}
        elif name in RIVALS:
            what["network"] = SasrecSpec(plan.adapters[0], self.config.baselines).digest
        else:
            what |= {"adapters": [s.digest for s in plan.adapters], "merge": plan.merge, "grid": plan.grid}
            what["beams"] = beams
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(), what, plan

    def popular(self, t: int, recent: bool, rows: int, width: int = 10) -> Found:
        """Return the same most frequent leaves of the training targets for every test."""
        slices = [(i, "train") for i in range(t if recent else 1, t + 1)]
        known = self.trie.leaf[self.blocks.item[self.blocks.select(slices, self.task.split)]]
        count = np.bincount(known, minlength=len(self.trie))
        best = np.argsort(-count, kind="stable")[:width]
        score = np.log(np.maximum(count[best], 1) / count.sum()).astype(np.float32)
        return Found(np.tile(best, (rows, 1)), np.tile(score, (rows, 1)), np.full(rows, len(best)))

    def network(self, spec: SasrecSpec) -> sasrec.Network:
        """Return a network from the store, trained first where it is not there; what it continues from before it."""
        if spec.digest not in self.networks:
            initial = self.network(spec.init).state_dict() if spec.init else None
            network, facts = sasrec.fit(spec, self.blocks, initial)
            nothing = (np.empty(0, np.int64), np.empty(0, np.float32))
            self.networks.publish_state(spec.digest, spec.manifest(), network.state_dict(), facts, nothing)
            self.tell(f"sasrec {spec.digest[:12]}: {json.dumps(facts)}")
        network = sasrec.Network(len(self.blocks.items), self.task.history, spec.recipe)
        network.load_state_dict(self.networks.load_state(spec.digest))
        return network.eval()

    def adapter(self, spec: GenerativeSpec) -> Adapter:
        """Return an adapter from the store, trained first where it is not there; its parents before it."""
        if spec.digest not in self.adapters:
            above = {p: self.adapter(p) for p in spec.parents()}  # type: ignore[arg-type]
            initial = above[spec.init] if spec.init else None
            frozen = [above[p] for p in spec.frozen.adapters] if spec.frozen else []
            fitted = fit(spec, self.model, self.blocks, self.engine, initial, frozen, checkpoint=self.states)
            self.adapters.publish(spec, fitted.adapter, {**fitted.facts(), "seconds": fitted.seconds}, str(self.folder))
            self.states.clear(spec.digest)
            self.tell(f"{spec}: validation loss {fitted.figure:.4f}, step {fitted.best_step} of {fitted.steps}")
        return self.adapters.load(spec.digest)

    def search(self, plan: Plan, t: int, rows: np.ndarray, beams: int = 10) -> tuple[Found, tuple[float, ...]]:
        """Return what a plan finds for the tests, and the merge weights chosen on V_t."""
        adapters = [self.adapter(s) for s in plan.adapters]
        weights = mixed = self.choose(plan, adapters, t)
        if plan.merge == "factor-arithmetic":
            adapters, mixed = [merge_factors(adapters, weights)], (1.0,)
        prompts = encode_histories(self.blocks, rows, self.model.codes, self.task.history)
        return beam_search(self.model, prompts, self.trie, beams, adapters, mixed), weights

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
    """Return one row for each (strategy, beams, tested block as published), and one with block `mean`.

    Args:
        values: lines of `Measured.values`, all rows, seeds and blocks together.

    Returns:
        `COLUMNS`: Hit and NDCG averaged over seeds; `low` and `high` are the 95 % bootstrap interval over users of
        NDCG@10.
    """
    out = []
    for (name, beams), own in values.groupby(["strategy", "beams"], sort=False):
        blocks = own.groupby("block")
        seeds = own["seed"].nunique()
        for block, part in [*blocks, ("mean", own)]:
            means = part.groupby("block")[list(FIELDS)].mean().mean()
            low, high = interval(*_by_period(part))
            out.append([name, block, *means, low, high, seeds, beams])
    return pd.DataFrame(out, columns=COLUMNS)


def by_group(values: pd.DataFrame) -> pd.DataFrame:
    """Return NDCG@10 and tests of new, dormant and active users, all blocks together."""
    grouped = values.groupby(["strategy", "beams", "group"], sort=False)
    return grouped.agg(ndcg10=("ndcg10", "mean"), tests=("row", "nunique")).reset_index()


def paired(values: pd.DataFrame, reference: str, field: str = "ndcg10") -> pd.DataFrame:
    """Return each strategy's mean of a metric minus the reference's, with its interval and p-value over users.

    A row is compared at its own number of beams; rows that rank all items are compared with the reference's most beams.
    `p_adjusted` is after Holm's correction over the lines of the table.
    """
    keys = ["strategy", "beams", "block", "row", "user"]
    average = values.groupby(keys, sort=False)[field].mean().reset_index()
    reference_rows = average[average["strategy"] == reference]
    out = []
    for (name, beams), own in average.groupby(["strategy", "beams"], sort=False):
        if name == reference or reference_rows.empty:
            continue
        base = reference_rows[reference_rows["beams"] == (beams or reference_rows["beams"].max())]
        both = own.merge(base, on=["block", "row", "user"], suffixes=("", "_base"), validate="1:1")
        both[field] -= both.pop(f"{field}_base")
        parts = _by_period(both, field)
        out.append([name, beams, reference, both.groupby("block")[field].mean().mean(), *interval(*parts)])
        out[-1].append(p_value(*parts))
    table = pd.DataFrame(out, columns=["strategy", "beams", "reference", "difference", "low", "high", "p"])
    return table.assign(p_adjusted=holm(table["p"].to_numpy(np.float64)))


def _by_period(values: pd.DataFrame, field: str = "ndcg10") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a metric, averaged over seeds, and users of each block."""
    each = [p.groupby(["row", "user"])[field].mean().reset_index() for _, p in values.groupby("block")]
    return [e[field].to_numpy() for e in each], [e["user"].to_numpy() for e in each]
