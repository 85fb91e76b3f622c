"""An RQ-VAE that turns item vectors into semantic IDs (methods.md 5c), for logs that come without published codes.

The vectors come from outside (title embeddings). A tokenizer that is trained on all items sees the titles of items that
appear later; train it on the first block's items and give it the rest to code, where that matters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional

from lsat_ray.errors import LsatError


@dataclass(frozen=True)
class Shape:
    """Size and training of the tokenizer; the published one has `hidden` 1024 to 64, `epochs` 20,000."""

    levels: int = 4
    size: int = 256
    """Codes of a level."""
    width: int = 32
    """Of the latent vector."""
    hidden: tuple[int, ...] = (256, 128)
    """Encoder layers; the decoder mirrors them."""
    commitment: float = 0.25
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 1024
    epochs: int = 200
    seed: int = 0
    epsilon: float = 0.003
    """Temperature of the Sinkhorn assignment that repairs collisions, on distances over their largest."""
    repairs: int = 20
    """Most rounds of repair."""


class RqVae(nn.Module):
    """Encoder, one codebook for each level's residual, decoder."""

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        sizes = [inputs, *shape.hidden, shape.width]
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])
        self.books = nn.ParameterList([torch.zeros(shape.size, shape.width) for _ in range(shape.levels)])

    def quantise(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes [N, M], the sum of their vectors [N, width] and the loss that ties both sides together."""
        left, total, codes = z, torch.zeros_like(z), []
        loss = z.new_zeros(())
        for book in self.books:
            code = torch.cdist(left.detach(), book.detach()).argmin(1)
            vector = functional.embedding(code, book)
            loss = loss + functional.mse_loss(vector, left.detach())
            loss = loss + self.shape.commitment * functional.mse_loss(left, vector.detach())
            codes.append(code)
            total, left = total + vector, left - vector.detach()
        return torch.stack(codes, dim=1), total, loss

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reconstruction and the quantisation loss; gradients pass straight through the codes."""
        z = self.encoder(x)
        _, total, loss = self.quantise(z)
        return self.decoder(z + (total - z).detach()), loss

    @torch.no_grad()
    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """Return items' codes, int16 [I, M]: the nearest at each level, collisions spread over the last level.

        In each round of repair the items that share their codes with an earlier item are assigned anew to the last
        level by Sinkhorn's algorithm, which shares the codes out evenly; what collides after the last round stays.
        """
        self.eval()
        z = self.encoder(_tensor(vectors))
        codes = self.quantise(z)[0].numpy().astype(np.int16)
        for _ in range(self.shape.repairs):
            again = _colliding(codes)
            if not len(again):
                break
            left = z[again].clone()
            for level in range(self.shape.levels - 1):
                left -= self.books[level][torch.from_numpy(codes[again, level].astype(np.int64))]
            moved = _sinkhorn(torch.cdist(left, self.books[-1]), self.shape.epsilon).argmax(1)
            new = codes.copy()
            new[again, -1] = moved.numpy()
            if len(_colliding(new)) >= len(again):
                break
            codes = new
        return codes


def train(vectors: np.ndarray, shape: Shape = Shape()) -> RqVae:
    """Return a tokenizer fitted to item vectors; the same arguments give the same weights.

    Codebooks start from k-means of the residuals of the untrained encoder.

    Args:
        vectors: float [I, D], one row an item.
        shape: size and training.

    Raises:
        LsatError: when there are no finite vectors.
    """
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise LsatError(
            f"rqvae: vectors of shape {vectors.shape}, some not finite or none; give one finite row an item"
        )
    torch.manual_seed(shape.seed)
    model, x = RqVae(vectors.shape[1], shape), _tensor(vectors)
    with torch.no_grad():
        left = model.encoder(x)
        for book in model.books:
            book.copy_(_centres(left.numpy(), shape.size, shape.seed))
            left = left - book[torch.cdist(left, book).argmin(1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.lr, weight_decay=shape.weight_decay)
    order = np.random.default_rng(shape.seed)
    for _ in range(shape.epochs):
        for group in np.array_split(order.permutation(len(x)), -(-len(x) // shape.batch_size)):
            batch = x[torch.from_numpy(group)]
            back, loss = model(batch)
            optimizer.zero_grad(set_to_none=True)
            (functional.mse_loss(back, batch) + loss).backward()
            optimizer.step()
    return model.eval()


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(inputs, outputs), *([nn.ReLU()] if number < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def _tensor(vectors: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))


def _centres(points: np.ndarray, size: int, seed: int) -> torch.Tensor:
    """Return [size, width] k-means centres; where there are fewer points, seeded noise around their mean fills up."""
    distinct = len(np.unique(points, axis=0))
    found = KMeans(min(size, distinct), n_init=1, random_state=seed).fit(points).cluster_centers_.astype(np.float32)
    noise = np.random.default_rng(seed).normal(size=(size - len(found), points.shape[1])) * points.std()
    return torch.from_numpy(np.concatenate([found, points.mean(0) + noise]).astype(np.float32))


def _colliding(codes: np.ndarray) -> np.ndarray:
    """Return the items whose codes an earlier item has too."""
    first = np.unique(codes, axis=0, return_index=True)[1]
    return np.setdiff1d(np.arange(len(codes)), first)


def _sinkhorn(distance: torch.Tensor, epsilon: float, rounds: int = 50) -> torch.Tensor:
    """Return log-weights [N, size] of the transport whose rows and columns are shared out evenly."""
    logits = -distance.double() / distance.max().clamp(min=1e-12) / epsilon
    for _ in range(rounds):
        logits = logits - torch.logsumexp(logits, 0, keepdim=True)
        logits = logits - torch.logsumexp(logits, 1, keepdim=True)
    return logits
