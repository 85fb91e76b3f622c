"""The six trained recommenders as torch modules: (user, last H items with labels, target) -> score (methods.md 4).

Every network adds a linear head over side features to its own score, so that it learns what the features leave over.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lsat_ray.baselines.spec import ClassicalRecipe


class Batch(NamedTuple):
    """B samples as tensors."""

    user: Tensor
    """int64 [B]; the last row of the table stands for a user that the log did not have."""
    item: Tensor
    """int64 [B], the target; likewise."""
    history: Tensor
    """int64 [B, H] items, oldest first."""
    liked: Tensor
    """int64 [B, H], 0/1."""
    side: Tensor
    """float32 [B, F]."""


class Sizes(NamedTuple):
    """What a network's shape depends on beside the recipe."""

    users: int
    items: int
    history: int
    """H."""
    side: int
    """F."""


def embedding(rows: int, width: int, scale: float) -> nn.Embedding:
    """Return a table of `rows` + 1 vectors drawn from N(0, scale^2); the last one is for unknown ids."""
    table = nn.Embedding(rows + 1, width)
    nn.init.normal_(table.weight, std=scale)
    return table


class Dropout(nn.Module):
    """Dropout that draws one mask for all steps of a sequence: H times fewer random numbers (Gal & Ghahramani 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero features of [B, width] or [B, H, width] with probability `rate`, scale the others up."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (len(x), *([1] * (x.dim() - 2)), x.shape[-1])
        return x * (torch.rand(shape) >= self.rate).to(x.dtype).div_(1.0 - self.rate)


class Network(nn.Module):
    """Score = side head + item bias + what the subclass's `interaction` returns."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__()
        self.side = nn.Parameter(torch.zeros(sizes.side))
        self.offset = nn.Parameter(torch.zeros(1))
        self.item_bias: nn.Embedding | None = None
        if recipe.biases:
            self.item_bias = embedding(sizes.items, 1, 1e-3)

    def interaction(self, batch: Batch) -> Tensor:
        """Return the model's own score, [B]."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Return scores, [B]."""
        score = batch.side @ self.side + self.offset + self.interaction(batch)
        return score if self.item_bias is None else score + self.item_bias(batch.item).squeeze(1)


class MF(Network):
    """p_u . q_i with biases (Koren 2009); ours: the user vector also holds the mean of the history's signed vectors."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        self.users = embedding(sizes.users, recipe.width, recipe.init_scale)
        self.items = embedding(sizes.items, recipe.width, recipe.init_scale)
        self.past = embedding(sizes.items, recipe.width, recipe.init_scale) if recipe.history_vector else None
        self.user_bias = embedding(sizes.users, 1, 1e-3) if recipe.biases else None
        self.dropout = Dropout(recipe.dropout)

    def interaction(self, batch: Batch) -> Tensor:
        """Return (p_u + mean_j sign_j z_j) . q_i + b_u, [B]."""
        user = self.users(batch.user)
        if self.past is not None:
            sign = batch.liked.to(user.dtype).mul(2).sub(1)
            user = user + torch.einsum("bh,bhw->bw", sign, self.past(batch.history)) / batch.history.shape[1]
        score = (self.dropout(user) * self.items(batch.item)).sum(1)
        return score if self.user_bias is None else score + self.user_bias(batch.user).squeeze(1)


class DeepMusic(Network):
    """p_u . MLP(frozen title vector): van den Oord 2013 with titles in the place of audio, trained on the label."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe, titles: Tensor) -> None:
        super().__init__(sizes, recipe.model_copy(update={"biases": False}))  # a cold item has its title only
        self.users = embedding(sizes.users, recipe.width, recipe.init_scale)
        self.user_bias = embedding(sizes.users, 1, 1e-3) if recipe.biases else None
        self.titles = titles  # not a parameter: rebuilt from the log
        self.content = nn.Sequential(
            nn.Linear(titles.shape[1], 256), nn.ReLU(), Dropout(0.5), nn.Linear(256, recipe.width)
        )
        self.everyone = nn.Linear(recipe.width, 1)

    def interaction(self, batch: Batch) -> Tensor:
        """Return (p_everyone + p_u) . MLP(title) + b_u, [B]."""
        content = self.content(self.titles[batch.item])
        score = (self.users(batch.user) * content).sum(1) + self.everyone(content).squeeze(1)
        return score if self.user_bias is None else score + self.user_bias(batch.user).squeeze(1)


class Sequence(Network):
    """What the sequence models share: item and label embeddings."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        self.items = embedding(sizes.items, recipe.width, recipe.init_scale)
        self.labels = embedding(1, recipe.width, recipe.init_scale)
        self.dropout = Dropout(recipe.dropout)

    def events_and_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return item + label embeddings of the history, [B, H, width], and the target's embedding, [B, width]."""
        found = self.items(torch.cat((batch.history, batch.item[:, None]), dim=1))  # one lookup, one dense gradient
        return found[:, :-1] + self.labels(batch.liked), found[:, -1]


class GRU4Rec(Sequence):
    """Last state of a one-layer GRU . e_target."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        self.gru = nn.GRU(recipe.width, recipe.width, batch_first=True)

    def interaction(self, batch: Batch) -> Tensor:
        """Return h_H . e_target, [B]."""
        events, target = self.events_and_target(batch)
        _, last = self.gru(self.dropout(events))
        return (last[0] * target).sum(1)


class Caser(Network):
    """Horizontal filters of heights 1..H (16 each, max over time) and 4 vertical ones; W'_target . [z; p_u]."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        width = recipe.width
        self.items = embedding(sizes.items, width, recipe.init_scale)
        self.labels = embedding(1, width, recipe.init_scale)
        self.users = embedding(sizes.users, width, recipe.init_scale)
        self.targets = embedding(sizes.items, 2 * width, recipe.init_scale)
        self.horizontal = nn.ModuleList(nn.Conv1d(width, 16, height) for height in range(1, sizes.history + 1))
        self.vertical = nn.Linear(sizes.history, 4, bias=False)
        self.hidden = nn.Linear(16 * sizes.history + 4 * width, width)
        self.dropout = Dropout(recipe.dropout)

    def interaction(self, batch: Batch) -> Tensor:
        """Return W'_target . [z; p_u], [B]."""
        image = (self.items(batch.history) + self.labels(batch.liked)).transpose(1, 2)
        parts = [torch.relu(convolve(image)).amax(2) for convolve in self.horizontal]
        parts.append(self.vertical(image).flatten(1))
        z = torch.relu(self.hidden(self.dropout(torch.cat(parts, 1))))
        return (torch.cat((z, self.users(batch.user)), 1) * self.targets(batch.item)).sum(1)


class Block(nn.Module):
    """Causal self-attention with one head and a feed-forward layer, each with LayerNorm before it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), Dropout(dropout), nn.Linear(width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, last_only: bool = False) -> Tensor:
        """Map [B, H, width] to [B, H, width], or to the last position alone, [B, 1, width]."""
        normed = self.norm(x)
        k, v = self.key_value(normed).chunk(2, dim=-1)
        if last_only:  # the last position sees every other one: no mask
            x, normed = x[:, -1:], normed[:, -1:]
        mixed = nn.functional.scaled_dot_product_attention(self.query(normed), k, v, is_causal=not last_only)
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.feed(self.norm2(x)))


class SASRec(Sequence):
    """Two causal attention blocks with learned positions; last state . e_target."""

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        self.positions = nn.Parameter(torch.randn(sizes.history, recipe.width) * recipe.init_scale)
        self.first, self.second = Block(recipe.width, recipe.dropout), Block(recipe.width, recipe.dropout)
        self.norm = nn.LayerNorm(recipe.width)

    def interaction(self, batch: Batch) -> Tensor:
        """Return LayerNorm(x_H) . e_target / sqrt(width), [B]; the root keeps a normed state's first steps small."""
        events, target = self.events_and_target(batch)
        x = self.dropout(events * events.shape[-1] ** 0.5 + self.positions)
        state = self.norm(self.second(self.first(x), last_only=True)[:, 0])
        return (state * target).sum(1) / state.shape[1] ** 0.5


class DIN(Sequence):
    """Deep Interest Network (Zhou 2018): the target attends to a long history, without softmax (methods.md 6).

    The attention's products are averaged over the events, and the plain mean of the events is read beside them (ours).
    """

    def __init__(self, sizes: Sizes, recipe: ClassicalRecipe) -> None:
        super().__init__(sizes, recipe)
        width = recipe.width
        self.none = sizes.items  # what stands where there is no event
        self.users = embedding(sizes.users, width, recipe.init_scale)
        self.attention = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.deep = nn.Sequential(
            nn.Linear(4 * width, 2 * width), nn.ReLU(), Dropout(recipe.dropout), nn.Linear(2 * width, width), nn.ReLU()
        )
        self.out = nn.Linear(width, 1)

    def represent(self, batch: Batch) -> Tensor:
        """Return the last hidden layer for (user, history, target), [B, width]."""
        events, target = self.events_and_target(batch)
        events = self.dropout(events)
        real = (batch.history != self.none).to(events.dtype)[..., None]
        share = real / real.sum(1, keepdim=True).clamp(min=1)
        beside = target[:, None].expand_as(events)
        weight = self.attention(torch.cat((beside, events, beside - events, beside * events), -1))
        interest, mean = ((w * events).sum(1) for w in (weight * share, share))
        hidden: Tensor = self.deep(torch.cat((interest, mean, target, self.users(batch.user)), 1))
        return hidden

    def interaction(self, batch: Batch) -> Tensor:
        """Return w . represent(batch), [B]."""
        return self.out(self.represent(batch)).squeeze(1)  # type: ignore[no-any-return]


def build(model: str, sizes: Sizes, recipe: ClassicalRecipe, titles: Tensor) -> Network:
    """Return a fresh network; weights come from torch's global generator."""
    if model == "deepmusic":
        return DeepMusic(sizes, recipe, titles)
    return {"mf": MF, "gru4rec": GRU4Rec, "caser": Caser, "sasrec": SASRec, "din": DIN}[model](sizes, recipe)
