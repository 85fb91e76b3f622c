"""RecLoRA on a worker: prompts from a long past, vectors of a frozen recommender, and scores (methods.md 6)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from lsat_ray.adapters.lora import AdaptedBackbone
from lsat_ray.adapters.personal import personal
from lsat_ray.adapters.store import AdapterStore
from lsat_ray.baselines import training
from lsat_ray.baselines.spec import ClassicalSpec
from lsat_ray.config import GateConfig, RetrieverConfig
from lsat_ray.data.past import lengthened
from lsat_ray.data.periods import Slice
from lsat_ray.data.stream import Reader
from lsat_ray.data.windows import Samples
from lsat_ray.prompts.batch import Encoded, apart
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.retriever import retrieve, unit_rows
from lsat_ray.scoring.score import margins


class Reclora:
    """What one worker needs for the adapters of RecLoRA beside its backbone."""

    def __init__(self, reader: Reader, encoder: Encoder, model: AdaptedBackbone, store: AdapterStore) -> None:
        self.reader, self.encoder, self.model, self.store = reader, encoder, model, store

    @cached_property
    def titles(self) -> np.ndarray:
        """Every title's mean token embedding in the backbone, centred, of length one: float32 [I, H]."""
        ids = self.encoder.pieces(self.encoder.titles)
        table = self.model.decoder.embed_tokens
        with torch.no_grad():
            means = [table(torch.tensor(i or [0], device=self.model.device)).float().mean(0).cpu().numpy() for i in ids]
        return unit_rows(np.stack(means)).astype(np.float32)

    def encode(self, how: dict[str, Any], samples: Samples, as_of: int) -> Encoded:
        """Encode samples as an adapter of these parts reads them.

        Args:
            how: `adapters.spec.Reclora.manifest`.
            samples: of the stream.
            as_of: the reader's time.
        """
        periods = self.reader.view(as_of)
        shown = samples
        if how["retriever"]:
            retriever = RetrieverConfig(**how["retriever"])
            shown = retrieve(lengthened(periods.samples, samples, retriever.past), self.titles, retriever)
        encoded = self.encoder.scoring(shown)
        if not how["gate"]:
            return encoded
        spec = ClassicalSpec.from_manifest(self.store.manifest(how["recommender"])["spec"])
        profile = training.represent(spec, self.store.load_state(how["recommender"]), periods, samples)
        return apart(encoded, profile)

    def score(self, digest: str, s: Slice, as_of: int, batch_tokens: int) -> np.ndarray:
        """Return the margins of a slice in the order of the stream, float32 [N], by an adapter of the store."""
        how = self.store.manifest(digest)["spec"]["reclora"]
        (samples,) = self.reader.read([s], as_of)
        encoded = self.encode(how, samples, as_of)
        adapter, gate = self.store.load(digest), how["gate"] and GateConfig(**how["gate"])
        width = 0 if encoded.profile is None else encoded.profile.shape[1]
        with personal(self.model, gate, width):
            self.model.eval()
            self.model.use_slot(self.model.slot, adapter.scale)
            self.model.restore(adapter.state)
            index, value = margins(self.model, encoded, self.model.device, batch_tokens)
        out = np.empty(len(index), dtype=np.float32)
        out[index] = value
        return out[np.argsort(encoded.row, kind="stable")]
