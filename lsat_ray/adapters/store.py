"""The content-addressed store of adapters: PEFT's folder format plus a manifest of digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsat_ray.adapters.lora import Adapter
from lsat_ray.adapters.spec import AdapterSpec
from lsat_ray.errors import LsatError
from lsat_ray.files import publish_folder, sha256_of

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
MEMORY = "memory.safetensors"
SCORES = "validation.safetensors"
REMEDY = "delete the folder, the next run trains the adapter again"

Scores = tuple[np.ndarray, np.ndarray]
"""(rows int64 [N], margins float32 [N])."""


class AdapterStore:
    """Adapters by the SHA-256 of their spec; a folder is complete or absent, and verified when it is read."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def __contains__(self, digest: str) -> bool:
        """Say whether an adapter was published; its files are not read (`usable` reads them)."""
        return (self.root / digest / MANIFEST).is_file()

    def path(self, digest: str) -> Path:
        """Return the adapter's folder, which PEFT's `from_pretrained` opens."""
        return self.root / digest

    def publish(
        self,
        spec: AdapterSpec,
        adapter: Adapter,
        facts: dict[str, Any],
        base: str,
        validation: Scores | None = None,
        revision: str | None = None,
    ) -> Path:
        """Publish an adapter durably, whole or not at all; a second publisher of the same spec changes nothing.

        Args:
            spec: gives the name.
            adapter: the weights.
            facts: JSON-ready values for the manifest (AUC, steps, ...).
            base: folder or hub name of the backbone, from which PEFT loads it (see `backbone.load.base_name`).
            validation: (rows int64 [V], margins float32 [V]) of the adapter on its validation slices.
            revision: commit of a hub backbone.
        """
        config = json.dumps(_peft_config(spec, adapter, base, revision), indent=2, sort_keys=True)
        return self._publish(spec.digest, spec.manifest(), adapter.state, facts, validation, config, adapter.memory)

    def publish_state(
        self, digest: str, spec: dict[str, Any], state: dict[str, Tensor], facts: dict[str, Any], validation: Scores
    ) -> Path:
        """Publish the tensors of a classical model under the same rules; the folder holds nothing for PEFT.

        Args:
            digest: SHA-256 of the spec, the name.
            spec: JSON-ready, for the manifest.
            state: tensors by name.
            facts: JSON-ready values for the manifest.
            validation: (rows int64 [V], scores float32 [V]) on the validation slices.
        """
        return self._publish(digest, spec, state, facts, validation, None)

    def _publish(
        self,
        digest: str,
        spec: dict[str, Any],
        state: dict[str, Tensor],
        facts: dict[str, Any],
        validation: Scores | None,
        config: str | None,
        memory: dict[str, Tensor] | None = None,
    ) -> Path:
        final = self.root / digest
        if digest in self:
            return final
        with publish_folder(final, MANIFEST) as draft:
            save_file({k: v.contiguous() for k, v in state.items()}, draft / WEIGHTS, metadata={"format": "pt"})
            if memory:
                save_file({k: v.contiguous() for k, v in memory.items()}, draft / MEMORY)
            if config is not None:
                (draft / CONFIG).write_text(config)
            if validation is not None:
                save_numpy({"row": validation[0], "margin": validation[1]}, draft / SCORES)
            files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
            manifest = {"digest": digest, "spec": spec, "files": files, "facts": facts}
            (draft / MANIFEST).write_text(_sealed(json.loads(json.dumps(manifest))))
        return final

    def usable(self, digest: str) -> bool:
        """Say whether an adapter is there and every file of it has the digest that its manifest names."""
        try:
            self._verified(digest)
        except LsatError:
            return False
        return True

    def quarantine(self, digest: str) -> str:
        """Rename a damaged adapter's folder to `.damaged-<digest>`, so that the next run trains the adapter again.

        Returns:
            One line that says what was done.
        """
        folder, aside = self.root / digest[:100], self.root / f".damaged-{digest}"
        if not _is_name(digest) or not folder.exists():
            return f"{folder}: no such adapter; it is trained again"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        return f"{folder}: damaged; renamed to {aside.name}, the adapter is trained again"

    def manifest(self, digest: str) -> dict[str, Any]:
        """Return an adapter's manifest.

        Raises:
            LsatError: when the adapter is not there or its manifest is broken.
        """
        if not _is_name(digest):
            raise LsatError(f"adapter {digest[:80]!r}: not a name in {self.root}; {REMEDY}")
        path = self.root / digest / MANIFEST
        try:
            tree = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise LsatError(f"{path.parent}: no such adapter; the next run trains it") from error
        except ValueError as error:
            raise LsatError(f"{path}: not JSON; {REMEDY}") from error
        if not isinstance(tree, dict) or not isinstance(tree.get("files"), dict):
            raise LsatError(f"{path}: not the manifest of an adapter; {REMEDY}")
        return tree

    def load(self, digest: str) -> Adapter:
        """Return an adapter after checking every file against its digest.

        Raises:
            LsatError: naming the file that differs.
        """
        state = self.load_state(digest)
        folder = self.root / digest
        config = json.loads((folder / CONFIG).read_text())
        memory = load_file(folder / MEMORY) if MEMORY in self.manifest(digest)["files"] else {}
        return Adapter(state, int(config["r"]), float(config["lora_alpha"]), memory)

    def load_state(self, digest: str) -> dict[str, Tensor]:
        """Return the tensors alone, verified; a classical model has nothing else."""
        folder = self._verified(digest)
        try:
            return load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise LsatError(f"{folder / WEIGHTS}: {error}; {REMEDY}") from error

    def validation(self, digest: str) -> Scores:
        """Return the (rows, margins) that `publish` was given, verified."""
        path = self._verified(digest) / SCORES
        if not path.is_file():
            raise LsatError(f"{path}: missing; {REMEDY}")
        columns = load_numpy(path)
        return columns["row"], columns["margin"]

    def _verified(self, digest: str) -> Path:
        folder = self.root / digest
        manifest = self.manifest(digest)
        if manifest.get("digest") != digest:
            raise LsatError(f"{folder / MANIFEST}: describes adapter {manifest.get('digest')}, not {digest}; {REMEDY}")
        tree = {k: v for k, v in manifest.items() if k != "check"}
        written = (folder / MANIFEST).read_text()
        known = set(tree) == {"digest", "spec", "files", "facts"}
        if not known or written != (_sealed(tree) if "check" in manifest else _text(tree)):
            raise LsatError(f"{folder / MANIFEST}: not as it was written, the file is damaged; {REMEDY}")
        for name, expected in manifest["files"].items():
            path = folder / name
            if not _is_name(name):
                raise LsatError(f"{folder / MANIFEST}: names {name[:80]!r}, which is not in its folder; {REMEDY}")
            if not path.is_file():
                raise LsatError(f"{path}: missing; {REMEDY}")
            if sha256_of(path) != expected:
                raise LsatError(f"{path}: its SHA-256 is not the manifest's, the file is damaged; {REMEDY}")
        return folder

    def digests(self) -> list[str]:
        """Return the names of all adapters, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if not p.name.startswith(".") and p.name in self)


def _is_name(text: str) -> bool:
    """Say whether a text from a file names something in a folder, and nothing above or below it."""
    return Path(text).name == text and text not in ("", "..") and len(text) <= 100


def _sealed(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest with its own SHA-256 in it; manifests of earlier versions have none."""
    return _text({**manifest, "check": hashlib.sha256(_text(manifest).encode()).hexdigest()})


def _text(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, sort_keys=True)


def _peft_config(spec: AdapterSpec, adapter: Adapter, base: str, revision: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": spec.lora.dropout,
        "target_modules": list(spec.lora.targets),
        "bias": "none",
        "inference_mode": True,
    }
