"""States of unfinished fits on disk: complete or absent, verified when read, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from lsat_ray.files import publish_folder

TENSORS, FACTS = "state.safetensors", "state.json"


class Checkpointer:
    """Saves the state of a fit every so many steps, under the digest of the adapter's spec."""

    def __init__(self, root: Path, every: int, keep: int = 2) -> None:
        """Say where states go, and how often.

        Args:
            root: parent of the fits' folders.
            every: steps between two states.
            keep: states that are kept per fit, the newest.
        """
        self.root = Path(root)
        self.every = every
        self.keep = keep

    def due(self, step: int) -> bool:
        """Return whether a state is to be saved after a step."""
        return step % self.every == 0

    def save(self, digest: str, step: int, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> Path:
        """Publish a state durably, whole or not at all, and drop the older ones.

        Args:
            digest: of the adapter's spec.
            step: optimizer steps so far; part of the state's name.
            tensors: CPU tensors by name.
            facts: JSON-ready values.
        """
        folder = self.root / digest
        final = folder / f"step-{step:08d}"
        if final.exists():
            shutil.rmtree(final)  # a state that failed its check, or of a run that began anew
        data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        tree = {"digest": digest, "sha256": hashlib.sha256(data).hexdigest(), "facts": facts}
        with publish_folder(final) as draft:
            (draft / TENSORS).write_bytes(data)
            (draft / FACTS).write_text(json.dumps(tree | {"check": _check(tree)}))
        for old in self._states(digest)[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load(self, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and facts of the newest state that is whole; None when there is none."""
        for folder in self._states(digest):
            try:
                tree = json.loads((folder / FACTS).read_text())
                data = (folder / TENSORS).read_bytes()
            except (OSError, ValueError):
                continue
            own = tree.pop("check", None) if isinstance(tree, dict) else None
            if own != _check(tree) or tree["digest"] != digest:
                continue
            if hashlib.sha256(data).hexdigest() == tree["sha256"]:
                return load(data), tree["facts"]
        return None

    def clear(self, digest: str) -> None:
        """Delete all states of a fit, once its adapter is published."""
        shutil.rmtree(self.root / digest, ignore_errors=True)

    def _states(self, digest: str) -> list[Path]:
        return sorted((self.root / digest).glob("step-*"), reverse=True)


def _check(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
