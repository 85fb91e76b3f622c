"""Low-rank factors of matrices, deterministic: B @ A with A [r, in] and B [out, r]."""

from __future__ import annotations

import torch

EXACT_BELOW = 1024
"""Matrices whose smaller side is at most that are factored exactly; larger ones by a seeded randomised SVD."""


def product_svd(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (A [rank, in], B [out, rank]), the best approximation of `b @ a`, without forming the product.

    QR of both factors leaves an SVD of size R x R, R being the given rank, in float64.

    Args:
        a: [R, in].
        b: [out, R].
        rank: of the result; directions that the product has not are zero.
    """
    q_out, r_out = torch.linalg.qr(b.double())
    q_in, r_in = torch.linalg.qr(a.double().T)
    left, values, right = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    return _factors(q_out @ left, values, right @ q_in.T, rank, a.dtype)


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (A [rank, in], B [out, rank]), the best approximation of a dense matrix [out, in].

    Above `EXACT_BELOW` the range is found by random projection with two power iterations (Halko 2011, algorithm 4.4),
    from a fixed seed.
    """
    dense = matrix.double()
    if min(dense.shape) <= max(EXACT_BELOW, rank + 16):
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
        return _factors(left, values, right, rank, matrix.dtype)
    probe = torch.randn(dense.shape[1], rank + 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(dense @ probe.to(dense.device)).Q
    for _ in range(2):
        basis = torch.linalg.qr(dense.T @ basis).Q
        basis = torch.linalg.qr(dense @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ dense, full_matrices=False)
    return _factors(basis @ left, values, right, rank, matrix.dtype)


def _factors(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the leading `rank` directions, padded with zeros; singular values go into B."""
    kept = min(rank, len(values))
    a = torch.zeros(rank, right.shape[1], dtype=dtype, device=right.device)
    b = torch.zeros(left.shape[0], rank, dtype=dtype, device=left.device)
    a[:kept] = right[:kept].to(dtype)
    b[:, :kept] = (left[:, :kept] * values[:kept]).to(dtype)
    return a, b
