"""What a replica is built from, and the checks of its address and token; nothing here needs Ray."""

from __future__ import annotations

import gc
import hashlib
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.backbone.load import fingerprint, load, locate, on_this_machine
from lsat_ray.config import BackboneConfig, Experiment, LoraSettings, PromptConfig
from lsat_ray.errors import LsatError
from lsat_ray.prompts.encode import Encoder
from lsat_ray.scoring.recommender import Recommender
from lsat_ray.serving import catalogue
from lsat_ray.serving.catalogue import Catalogue
from lsat_ray.serving.desk import Desk
from lsat_ray.serving.metrics import Metrics

PREDECESSOR_S = 30.0
"""Seconds in which a predecessor that was killed lets go of the port."""


@dataclass(frozen=True)
class Setup:
    """What a replica is built from; small, for Serve keeps it in the cluster's store."""

    backbone_folder: str
    backbone: BackboneConfig
    lora: LoraSettings
    prompt: PromptConfig
    titles: tuple[str, ...]
    """Titles of the catalogue, for bulk scoring; HTTP brings its own."""
    store_root: str
    run_dir: str
    """Folder of `current.json`, on storage that every replica sees."""
    history: int
    """Longest history that HTTP may send."""
    batch_tokens: int
    state_bytes: int
    """Most bytes of prefix states that a replica keeps between requests."""
    threads: int
    default: str | None
    """Name of the model that answers where none is named (None: the first)."""
    deadline_s: float
    """Longest that a request waits for its turn."""
    catalogue: Catalogue
    """What a ranking without candidates orders."""
    token_sha256: str | None
    """SHA-256 of the bearer token, hex; the token itself never leaves the driver."""

    @staticmethod
    def of(config: Experiment, folder: Path, titles: Sequence[str], store_root: Path, run_dir: Path) -> Setup:
        """Return what a run's config says of its replicas.

        Raises:
            LsatError: when the token's variable is not set, or the catalogue cannot be read.
        """
        return Setup(
            backbone_folder=str(folder),
            backbone=config.backbone,
            lora=config.lora,
            prompt=config.prompt,
            titles=tuple(titles),
            store_root=str(store_root.absolute()),
            run_dir=str(run_dir.absolute()),
            history=config.data.history,
            batch_tokens=config.engine.batch_tokens,
            state_bytes=config.serve.states_mib << 20,
            threads=config.serve.threads,
            default=config.serve.default,
            deadline_s=config.serve.deadline_s,
            catalogue=catalogue.read(config.serve.catalogue, config.serve.shortlist),
            token_sha256=hash_token(config.serve.token_env),
        )

    def desk(self, replica: str) -> Desk:
        """Load the backbone and return the desk of a replica; it serves what the run folder says."""
        import torch

        torch.set_num_threads(self.threads)
        backbone = load(self.backbone, on_this_machine(self.backbone, Path(self.backbone_folder)))
        model, store = AdaptedBackbone(backbone, self.lora), AdapterStore(Path(self.store_root))
        desk = Desk(
            Recommender(model, store, self.batch_tokens, backbone.fingerprint, self.state_bytes),
            Encoder(backbone.tokenizer, self.prompt, self.titles),
            Path(self.run_dir),
            self.default,
            self.deadline_s,
            Metrics(replica),
        )
        gc.collect()
        gc.freeze()  # a full collection walks all that was loaded: tenths of a second in which nobody is answered
        return desk


def backbone_of(config: Experiment, run_dir: Path) -> Path:
    """Return the folder of the run's backbone; a nano one is known by the fingerprint that its adapters name.

    Raises:
        LsatError: when it is not there.
    """
    if config.backbone.path != "nano":
        return locate(config.backbone)
    built = sorted((run_dir.parent / "backbones").glob("nano-*/config.json"))
    store = AdapterStore(run_dir / "adapters")
    wanted = {store.manifest(digest)["spec"].get("backbone") for digest in store.digests()}
    found = [p.parent for p in built if fingerprint(p.parent, config.backbone) in wanted]
    if not found and len(built) == 1:
        found = [built[0].parent]
    if not found:
        raise LsatError(
            f"{run_dir.parent / 'backbones'}: the run's nano backbone is not there; run the replay again, it is built "
            "from the log"
        )
    return found[0]


def hash_token(variable: str | None) -> str | None:
    """Return the SHA-256 of the bearer token that a variable holds, hex."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise LsatError(f"serve.token_env: {variable} is not set; export it, or set serve.token_env to null")
    return hashlib.sha256(token.encode()).hexdigest()


def check_open(config: Experiment) -> None:
    """Refuse an address that others can reach where no token is asked for, and a token that is not there.

    Raises:
        LsatError: naming the key.
    """
    hash_token(config.serve.token_env)
    if config.serve.token_env is None and not _loopback(config.serve.host):
        raise LsatError(
            f"serve.host: {config.serve.host} can be reached by others and no token is asked for; set serve.token_env "
            "to the name of a variable that holds one, or serve on 127.0.0.1"
        )


def check_port(config: Experiment, patience_s: float = 0.0) -> None:
    """Refuse a port that cannot be had.

    Args:
        config: `serve` is read.
        patience_s: seconds in which it may come free (`PREDECESSOR_S` where a process that was killed may hold it).

    Raises:
        LsatError: naming the key.
    """
    host, port = config.serve.host, config.serve.port
    deadline = time.monotonic() + patience_s
    while (reason := taken(host, port)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if reason:
        raise LsatError(
            f"serve.port: {host}:{port} cannot be had ({reason}); choose another with --set serve.port=8001, or "
            "end the program that listens there"
        )


def taken(host: str, port: int) -> str | None:
    """Return why the port cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
