"""From samples to encoded sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsat_ray.config import PromptConfig
from lsat_ray.data.windows import Samples
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded
from lsat_ray.prompts.layouts import common, shared_history, stream
from lsat_ray.prompts.tallrec import preamble, prompt_text, sanitise


class Encoder:
    """Encode samples for one tokenizer, one set of titles and one prompt config."""

    def __init__(self, tokenizer: Any, config: PromptConfig, titles: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.titles = [sanitise(t) for t in titles]
        self._opening: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._preamble = self._ids([preamble(config.item_word)])[0]

    def __call__(self, samples: Samples) -> Encoded:
        """Encode samples in the configured layout; targets of one sequence stand together, known by their row."""
        return LAYOUTS[self.config.layout](self, samples)

    def scoring(self, samples: Samples) -> Encoded:
        """Encode samples so that no target's score depends on its company, as the endpoint meets them one by one.

        Only `shared-history` differs: its targets get their own, fresh history.
        """
        return shared_history(self, samples, 1) if self.config.layout == "shared-history" else self(samples)

    def with_titles(self, titles: Sequence[str]) -> Encoder:
        """Return the same encoder over other titles, such as those of a request."""
        twin = copy.copy(self)
        twin.titles = [sanitise(t) for t in titles]
        return twin

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [self._opening + ids for ids in self.pieces(texts)]

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of texts, nothing added; `<s>` in a title is three characters, not a special token."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation or backend.padding:
            found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
            return list(found["input_ids"])
        backend.encode_special_tokens = True
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]  # without offsets

    def shared_prefix(self, prompts: list[list[int]]) -> int:
        """Return how many tokens of the preamble all prompts begin with, at least one of each left over."""
        return min((min(len(ids) - 1, common(self._preamble, ids)) for ids in prompts), default=0)

    def prompt_ids(self, samples: Samples) -> list[list[int]]:
        """Return the token ids of each sample's prompt; the oldest history goes where a prompt is too long.

        A history shorter than the table's is padded on the left with items of -1, which are left out.

        Raises:
            LsatError: when a target's title alone does not fit.
        """
        padding = (samples.history_item < 0).sum(axis=1)
        word, limit = self.config.item_word, self.config.max_tokens

        def text(i: int, skip: int) -> str:
            start = padding[i] + skip
            history, labels = samples.history_item[i, start:], samples.history_label[i, start:]
            return prompt_text(self.titles, history, labels, int(samples.item[i]), word)

        prompts = self._ids([text(i, 0) for i in range(len(samples))])
        for i, ids in enumerate(prompts):
            skip = 0
            while len(ids) > limit:
                skip += 1
                if skip > samples.history_item.shape[1]:
                    raise LsatError(
                        f"prompt.max_tokens: item {samples.item[i]} (title of {len(self.titles[samples.item[i]])} "
                        f"characters) needs {len(ids)} tokens without any history, {limit} are allowed; raise it"
                    )
                ids = self._ids([text(i, skip)])[0]
            prompts[i] = ids
        return prompts


def exact(encoder: Encoder, samples: Samples) -> Encoded:
    """Encode one prompt a target; what the prompts share of the preamble becomes the prefix."""
    prompts = encoder.prompt_ids(samples)
    shared = encoder.shared_prefix(prompts)
    lengths = np.array([len(ids) - shared for ids in prompts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(
        prefix=np.array(encoder._preamble[:shared], dtype=np.int32),
        tokens=np.array([t for ids in prompts for t in ids[shared:]], dtype=np.int32),
        offsets=offsets,
        answer=offsets[1:] - 1,
        sequence=np.arange(len(prompts), dtype=np.int64),
        row=samples.row,
        label=samples.label,
    )


LAYOUTS: dict[str, Callable[[Encoder, Samples], Encoded]] = {
    "exact": exact,
    "shared-history": shared_history,
    "stream": stream,
}
"""Encoders by `prompt.layout`."""
