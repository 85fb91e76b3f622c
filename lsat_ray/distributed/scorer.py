"""A replica: the desk that answers, its HTTP routes, and the two phases of a change, reached by the handle alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from lsat_ray.backbone.load import on_this_machine
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.scoring.served import Served
from lsat_ray.serving.desk import Bulk
from lsat_ray.serving.endpoint import build_app
from lsat_ray.serving.metrics import merged
from lsat_ray.serving.setup import Setup
from lsat_ray.training import memory


@dataclass(frozen=True)
class Report:
    """What a replica says of itself to the driver."""

    replica: str
    pid: int
    serving: str
    """Digest of what it serves (`Served.digest`)."""
    prepared: str | None
    """Digest of what it would serve next."""
    error: str | None = None
    """Why it refused; it serves what it served before."""


class Scorer:
    """Answer questions over HTTP, score samples in bulk, and change models in two phases."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        folder = on_this_machine(setup.backbone, Path(setup.backbone_folder))
        memory.check_replica(setup.backbone, setup.lora, setup.batch_tokens, setup.state_bytes, folder, gpus)
        self.desk = setup.desk(serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP routes; Serve calls this after the constructor."""
        setup = self.setup
        return build_app(self.desk, setup.token_sha256, setup.history, self.all_metrics, setup.catalogue)

    async def score_bulk(
        self, samples: Samples, names: Sequence[str] | None = None, share: tuple[int, int] = (0, 1)
    ) -> Bulk:
        """Score samples with some served models (all when None), or do a replica's share of it."""
        return await self.desk.bulk(samples, names, share)

    async def metrics(self) -> str:
        """Return this replica's counters."""
        return await self.desk.metrics_text()

    async def all_metrics(self) -> str:
        """Return the counters of all replicas; those of this one when the others do not answer in time."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            texts = await handle.broadcast("metrics").results_async(timeout_s=2)
        except Exception:  # noqa: BLE001 - a replica that dies must not blind the monitoring
            texts = [await self.metrics()]
        return merged(texts)

    async def prepare(self, following: dict[str, Any]) -> Report:
        """Load and verify the next models beside the current ones; a refusal changes nothing."""
        try:
            await self.desk.prepare(Served.from_json(following))
        except LsatError as error:
            return self._report(str(error))
        return self._report()

    async def commit(self, digest: str) -> Report:
        """Serve what was prepared under this digest, or published while this replica was not there."""
        try:
            await self.desk.commit(digest)
        except LsatError as error:
            return self._report(str(error))
        return self._report()

    async def state(self) -> Report:
        """Say what is served and what is prepared."""
        return self._report()

    def _report(self, error: str | None = None) -> Report:
        prepared = self.desk.prepared.digest if self.desk.prepared else None
        return Report(self.desk.metrics.replica, os.getpid(), self.desk.served.digest, prepared, error)
