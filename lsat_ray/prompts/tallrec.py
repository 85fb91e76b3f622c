"""The TALLRec prompt in the wording of the LSAT code (methods.md 1c)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# One trailing space after the first paragraph, as in the LSAT code.
PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. \n\n"
    "### Instruction:\n"
    "Given the user's preference and unpreference, identify whether the user will like the target {word} by answering "
    '"Yes." or "No.".\n\n'
    "### Input:\n"
    "User Preference: "
)
RESPONSE = "\n\n### Response:\n"

_BREAKS = re.compile(r"[\x00-\x20\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff]+")
_HEADER = re.compile(r"#{2,}")


def sanitise(title: str) -> str:
    """Return a title that cannot leave its quotes or open a prompt section: titles are untrusted text.

    Line breaks and control characters become spaces, `"` becomes `'`, runs of `#` become one. Ordinary titles are
    returned unchanged.
    """
    return _HEADER.sub("#", _BREAKS.sub(" ", title).replace('"', "'")).strip()


def preamble(word: str) -> str:
    """Return the part that all prompts share."""
    return PREAMBLE.format(word=word)


def history_text(titles: Sequence[str], history: np.ndarray, labels: np.ndarray) -> str:
    """Return the part between the preamble and the target: liked titles, then disliked ones, each in time order.

    Args:
        titles: sanitised title of every item.
        history: item indices [H], oldest first.
        labels: 0/1 [H].
    """
    liked = ", ".join(f'"{titles[i]}"' for i, y in zip(history, labels, strict=True) if y)
    disliked = ", ".join(f'"{titles[i]}"' for i, y in zip(history, labels, strict=True) if not y)
    return f"{liked}\nUser Unpreference: {disliked}\n"


def target_text(title: str, word: str) -> str:
    """Return the part from the question to the answer's place."""
    return f'Whether the user will like the target {word} "{title}"?{RESPONSE}'


def prompt_text(titles: Sequence[str], history: np.ndarray, labels: np.ndarray, target: int, word: str) -> str:
    """Return one whole prompt; the answer (`Yes.` or `No.`) follows it directly."""
    return preamble(word) + history_text(titles, history, labels) + target_text(titles[target], word)
