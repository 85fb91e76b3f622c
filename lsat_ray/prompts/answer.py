"""The answer tokens, found from the tokenizer in the place where they occur."""

from __future__ import annotations

from typing import Any, NamedTuple

from lsat_ray.errors import LsatError


class AnswerTokens(NamedTuple):
    """Vocabulary ids of the first token of `Yes.` and `No.` right after the prompt."""

    no: int
    yes: int


def find_answer_tokens(tokenizer: Any, prompt: str) -> AnswerTokens:
    """Return the ids that follow `prompt` when the answer is `No.` and when it is `Yes.`.

    The ids are read off the joint encoding of prompt and answer, so that a tokenizer which merges across the border is
    an error here and not a silent shift later (methods.md 1d).

    Raises:
        LsatError: when the prompt's own tokens change with the answer, or both answers begin with the same token.
    """
    base = tokenizer.encode(prompt, add_special_tokens=False)
    found = []
    for answer in ("No.", "Yes."):
        joint = tokenizer.encode(prompt + answer, add_special_tokens=False)
        if joint[: len(base)] != base or len(joint) <= len(base):
            raise LsatError(
                f"tokenizer: the prompt's last tokens change when {answer!r} follows, so the answer has no position of "
                "its own; use a tokenizer that keeps a line break apart from the next word"
            )
        found.append(joint[len(base)])
        if tokenizer.decode([joint[len(base)]]).strip() not in (answer, answer[:-1]):
            raise LsatError(
                f"tokenizer: {answer[:-1]!r} is not a single token after the prompt (it begins with "
                f"{tokenizer.decode([joint[len(base)]])!r}); use a tokenizer in whose vocabulary it is"
            )
    if found[0] == found[1]:
        raise LsatError("tokenizer: 'Yes' and 'No' begin with the same token; use another tokenizer")
    return AnswerTokens(no=found[0], yes=found[1])
