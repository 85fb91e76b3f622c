"""Answer tokens are found where they occur, or the error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsat_ray.errors import LsatError
from lsat_ray.prompts.answer import find_answer_tokens

PROMPT = "### Response:\n"


class Words:
    """A tokenizer over a fixed list of pieces, longest match first."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = sorted({*pieces, *map(chr, range(32, 127)), "\n"}, key=lambda p: (-len(p), p))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids = []
        while text:
            piece = next(p for p in self.pieces if text.startswith(p))
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


def test_single_tokens_are_found() -> None:
    words = Words("Yes", "No")
    found = find_answer_tokens(words, PROMPT)
    assert (words.decode([found.no]), words.decode([found.yes])) == ("No", "Yes")


def test_the_form_after_the_prompt_counts_not_the_form_after_a_space() -> None:
    words = Words("Yes", "No", " Yes", " No")
    assert words.decode([find_answer_tokens(words, PROMPT).yes]) == "Yes"


def test_a_merge_across_the_border_is_an_error() -> None:
    with pytest.raises(LsatError, match="prompt's last tokens change"):
        find_answer_tokens(Words("Yes", "No", "\nYes"), PROMPT)


def test_answers_of_several_tokens_are_an_error() -> None:
    with pytest.raises(LsatError, match="'Yes' is not a single token"):
        find_answer_tokens(Words("No"), PROMPT)


def test_the_nano_tokenizer_has_them(tiny_backbone_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_backbone_folder)
    found = find_answer_tokens(tokenizer, PROMPT)
    assert [tokenizer.decode([t]) for t in found] == ["No", "Yes"]
