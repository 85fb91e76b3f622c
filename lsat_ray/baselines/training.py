"""Fit and score the torch models: deterministic given seed and threads, without side effects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lsat_ray.baselines.features import side_columns, side_of, title_vectors
from lsat_ray.baselines.networks import DIN, Batch, Network, Sizes, build
from lsat_ray.baselines.spec import ClassicalRecipe, ClassicalSpec
from lsat_ray.data.past import few, lengthened
from lsat_ray.data.periods import Periods
from lsat_ray.data.windows import Samples, concatenate
from lsat_ray.errors import LsatError
from lsat_ray.evaluation.metrics import auc

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Fitted:
    """A fitted model and what fitting it took."""

    state: State
    """Tensors by name, ready for safetensors."""
    validation_scores: np.ndarray
    """float64, one for every row of the spec's validation slices, in their order."""
    epochs: int
    """Passes over the training rows that were made."""
    best_epoch: int
    """Pass whose weights were kept; 0 is the start, which only a continued model may return to."""
    steps: int
    """Optimizer steps that were taken."""
    stopped_by: Literal["patience", "budget"]
    """Whether validation stopped improving, or the passes were used up before."""
    seconds: float
    """Wall clock of the fit."""


def training_rows(spec: ClassicalSpec, periods: Periods) -> Samples:
    """Return the rows that a spec trains on: its slices, or some of them, and the warm-up when it asks for it."""
    rows = periods.select(spec.train)
    if spec.rows is not None:
        rows = few(rows, spec.rows, spec.seed)
    before = periods.borders[0]
    if not spec.warmup or before == 0 or spec.recipe.warmup_rows == 0:
        return rows
    return concatenate([periods.samples.take(slice(max(0, before - spec.recipe.warmup_rows), before)), rows])


def to_batch(samples: Samples, side: np.ndarray, sizes: Sizes) -> Batch:
    """Return samples as tensors; ids outside the tables become the row for unknown ids.

    Args:
        side: side features of every sample of the stream, looked up by `row`.
    """

    def ids(column: np.ndarray, limit: int) -> Tensor:
        column = column.astype(np.int64)
        return torch.from_numpy(np.where((column < 0) | (column >= limit), limit, column))

    return Batch(
        user=ids(samples.user, sizes.users),
        item=ids(samples.item, sizes.items),
        history=ids(samples.history_item, sizes.items),
        liked=torch.from_numpy(samples.history_label.astype(np.int64)),
        side=torch.from_numpy(np.ascontiguousarray(side[samples.row, : sizes.side])),
    )


def inputs(spec: ClassicalSpec, periods: Periods, samples: Samples, sizes: Sizes) -> Batch:
    """Return samples as the model of a spec sees them: with its side features and as much history as it reads."""
    if spec.past is not None:
        samples = lengthened(periods.samples, samples, spec.past)
    return to_batch(samples, side_of(spec, periods), sizes)


def sizes_of(spec: ClassicalSpec, periods: Periods) -> Sizes:
    """Return table sizes for the log's global vocabulary: ids not trained on keep their random start."""
    samples = periods.samples
    users = int(samples.user.max()) + 1
    return Sizes(users, len(periods.titles), samples.history_item.shape[1], side_columns(spec.recipe.side))


def fit_network(spec: ClassicalSpec, periods: Periods, initial: State | None) -> Fitted:
    """Fit one torch model; Adam's state starts anew, the pass that validates best is kept."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network, sizes = _network(spec, periods)
        rows = training_rows(spec, periods)
        train, y = inputs(spec, periods, rows, sizes), torch.from_numpy(rows.label.astype(np.float32))
        if initial is None:
            _solve_side(network, train.side, y, spec.recipe.loss)
        else:
            network.load_state_dict(initial)
        held = periods.select(spec.validation)
        valid = inputs(spec, periods, held, sizes)
        start, optimiser = _copy(network), _optimiser(network, spec)

        def a_pass(epoch: int) -> tuple[State, float]:
            _epoch(network, optimiser, train, y, spec)
            return _copy(network), criterion(spec.recipe, held.label, predict(network, valid))

        old = (start, criterion(spec.recipe, held.label, predict(network, valid))) if spec.keep_old else None
        best, best_epoch, epochs, stopped_by = patient(spec.recipe, a_pass, old)
        network.load_state_dict(best)
        scores = predict(network, valid)
    steps = epochs * -(-len(y) // spec.recipe.batch_size)
    return Fitted(best, scores, epochs, best_epoch, steps, stopped_by, time.perf_counter() - started)


def patient(
    recipe: ClassicalRecipe, a_pass: Callable[[int], tuple[State, float]], old: tuple[State, float] | None
) -> tuple[State, int, int, Literal["patience", "budget"]]:
    """Make passes until `patience` of them in a row are no better than the best, and keep the best.

    Args:
        a_pass: number of the pass, from 1 -> weights after it and their validation score.
        old: the start where it may be returned; it is compared at the end and uses up no patience.

    Returns:
        Weights, their pass (0: the start), passes made, what ended them.
    """
    state, best_score = a_pass(1)
    best_epoch, epoch = 1, 1
    while epoch < recipe.epochs and epoch - best_epoch < recipe.patience:
        epoch += 1
        found, score = a_pass(epoch)
        if score > best_score:
            state, best_score, best_epoch = found, score, epoch
    stopped_by: Literal["patience", "budget"] = "patience" if epoch - best_epoch >= recipe.patience else "budget"
    if old is not None and old[1] >= best_score:
        state, best_epoch = old[0], 0
    return state, best_epoch, epoch, stopped_by


def score_network(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> np.ndarray:
    """Return the scores of samples, float64 [N]."""
    network, batch = _loaded(spec, state, periods, samples)
    return predict(network, batch)


def represent(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> np.ndarray:
    """Return what a frozen recommender says of each sample beside its score, float32 [N, width].

    Raises:
        LsatError: when the model is none that represents samples.
    """
    network, batch = _loaded(spec, state, periods, samples)
    if not isinstance(network, DIN):
        raise LsatError(f"{spec.model}: it gives no vector of a sample; RecLoRA's gate reads din")
    return predict(network, batch, network.represent).astype(np.float32)


def _loaded(spec: ClassicalSpec, state: State, periods: Periods, samples: Samples) -> tuple[Network, Batch]:
    with torch.random.fork_rng(devices=[]):
        network, sizes = _network(spec, periods)
    network.load_state_dict(state)
    return network, inputs(spec, periods, samples, sizes)


@torch.no_grad()
def predict(
    network: Network, batch: Batch, what: Callable[[Batch], Tensor] | None = None, rows: int = 4096
) -> np.ndarray:
    """Return scores (or what `what` says), float64 [N, ...], in chunks; the network is left in evaluation mode."""
    network.eval()
    n = len(batch.user)
    parts = [(what or network)(Batch(*(c[i : i + rows] for c in batch))) for i in range(0, n, rows)]
    return torch.cat(parts).double().numpy() if parts else np.empty(0)


def _network(spec: ClassicalSpec, periods: Periods) -> tuple[Network, Sizes]:
    sizes = sizes_of(spec, periods)
    titles = torch.empty(0)
    if spec.model == "deepmusic":
        vectors = title_vectors(periods.titles)
        titles = torch.from_numpy(np.vstack([vectors, np.zeros_like(vectors[:1])]))
    return build(spec.model, sizes, spec.recipe, titles), sizes


def criterion(recipe: ClassicalRecipe, labels: np.ndarray, scores: np.ndarray) -> float:
    """Return what selects a pass, larger is better: the AUC, or minus the recipe's own loss (also with one class)."""
    area = auc(labels, scores) if recipe.select == "auc" else float("nan")
    if area == area:
        return area
    if recipe.loss == "mse":
        return -float(np.mean((labels - scores) ** 2))
    return -float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -scores, scores))))


def _copy(network: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def _solve_side(network: Network, side: Tensor, y: Tensor, loss: str) -> None:
    """Start the side head at the ridge solution, so that fitting begins where the features alone end."""
    x = torch.cat([side, torch.ones(len(side), 1)], dim=1).double()
    gram = x.T @ x + 1.0 * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ y.double()).float()
    if loss == "bce":  # slope of the logistic function at one half
        weight = 4.0 * weight
        weight[-1] -= 2.0
    with torch.no_grad():
        network.side.copy_(weight[:-1])
        network.offset.copy_(weight[-1:])


def _optimiser(network: nn.Module, spec: ClassicalSpec) -> torch.optim.Adam:
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    dense = [p for p in network.parameters() if id(p) not in tables]
    sparse = [p for p in network.parameters() if id(p) in tables]
    recipe = spec.recipe
    groups = [
        {"params": dense, "weight_decay": recipe.weight_decay},
        {"params": sparse, "weight_decay": 0.0, "lr": recipe.lr * recipe.table_lr},
    ]
    return torch.optim.Adam(groups, lr=recipe.lr, fused=True)


def _epoch(network: Network, optimiser: torch.optim.Adam, train: Batch, y: Tensor, spec: ClassicalSpec) -> None:
    """Make one pass in random order.

    Adam divides an untouched row's decay by its own size and would pull every unseen embedding to zero at the full
    learning rate; hence the decay reaches only the rows that a batch touches.
    """
    network.train()
    recipe = spec.recipe
    objective = nn.functional.mse_loss if recipe.loss == "mse" else nn.functional.binary_cross_entropy_with_logits
    tables = optimiser.param_groups[1]["params"]
    for index in torch.randperm(len(y)).split(recipe.batch_size):
        optimiser.zero_grad(set_to_none=True)
        loss = objective(network(Batch(*(c[index] for c in train))), y[index])
        loss.backward()
        if recipe.weight_decay:
            for table in tables:
                touched = table.grad.mv(torch.ones(table.shape[1])).nonzero().squeeze(1)
                table.grad.index_add_(0, touched, table.detach()[touched], alpha=recipe.weight_decay)
        optimiser.step()
