"""What a user would write: transformers, PEFT and FastAPI, one prompt at a time, `set_adapter` for each member.

    python benchmarks/serving_peer.py BACKBONE LONG SHORT ALPHA ITEM_WORD PORT

Started by `serving.py`, which compares with it. The prompt's text and the answer tokens are ours, so that both do the
same work; everything else is the libraries' documented way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from peft import PeftModel
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.prompts.answer import find_answer_tokens
from lsat_ray.prompts.tallrec import prompt_text, sanitise


class Event(BaseModel):
    """One interaction."""

    title: str
    liked: bool


class Question(BaseModel):
    """Will this user like the target?"""

    history: list[Event]
    target: str


def build(backbone: str, long: str, short: str, alpha: float, word: str) -> FastAPI:
    """Return the application: P(like) = alpha P_long + (1 - alpha) P_short."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), long, adapter_name="long")
    model.load_adapter(short, adapter_name="short")
    model.eval()
    answers = find_answer_tokens(tokenizer, prompt_text(["a"], np.array([0]), np.array([1]), 0, word))
    app, lock = FastAPI(), Lock()

    @app.post("/v1/score")
    def score(body: Question) -> dict[str, float]:
        titles = [sanitise(e.title) for e in body.history] + [sanitise(body.target)]
        past = np.arange(len(body.history))
        text = prompt_text(titles, past, np.array([e.liked for e in body.history]), len(past), word)
        bos = "" if tokenizer.bos_token is None else tokenizer.bos_token
        inputs = tokenizer(bos + text, return_tensors="pt", add_special_tokens=False)
        found = []
        with lock, torch.inference_mode():
            for name in ("long", "short"):
                model.set_adapter(name)
                logits = model(**inputs).logits[0, -1, [answers.no, answers.yes]]
                found.append(float(torch.softmax(logits.float(), dim=0)[1]))
        return {"probability": alpha * found[0] + (1 - alpha) * found[1]}

    return app


if __name__ == "__main__":
    backbone, long, short, alpha, word, port = sys.argv[1:]
    uvicorn.run(build(backbone, long, short, float(alpha), word), port=int(port), log_level="warning")
