"""Rate items through any endpoint that speaks the OpenAI chat-completions protocol.

Answers are read from the log-probabilities of the first number token where the endpoint offers them (the expected
rating), else from the words. Failures that pass (429, 5xx, timeouts, broken connections) are tried again with growing
waits; the cost of an answer is counted before the next request, and no request is sent that could exceed the budget.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from lsat_ray.errors import LsatError
from lsat_ray.files import write_atomic

Messages = list[dict[str, str]]
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""
NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class EndpointConfig:
    """Which endpoint, and what it may cost."""

    url: str
    """Base address that ends in `/v1`."""
    model: str
    """Name of the model there."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key (None: the endpoint asks for none)."""
    scale: int = 10
    """Ratings run from 1 to this."""
    timeout_s: float = 30.0
    """Seconds for one request."""
    retries: int = 5
    """Most tries after the first."""
    backoff_s: float = 1.0
    """First wait; it doubles every time, up to a minute, unless the server names one."""
    max_answer_tokens: int = 5
    """Most tokens of an answer."""
    budget_tokens: int | None = None
    """Most tokens, in and out, that this process may spend."""
    budget_cost: float | None = None
    """Most money that this process may spend, in the currency of the prices."""
    price_in: float = 0.0
    """Price of a million prompt tokens."""
    price_out: float = 0.0
    """Price of a million answer tokens."""
    logprobs: bool = True
    """Ask for log-probabilities; endpoints that refuse them are asked without from then on."""


class BudgetExceeded(LsatError):
    """The next request could cost more than is left."""


@dataclass
class Usage:
    """What was spent, and how answers were read."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    from_logprobs: int = 0
    parse_failures: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a dry run found: how many prompts would be sent, and at what cost."""

    prompts: int
    cached: int
    tokens: int
    """Upper estimate of prompt and answer tokens of the prompts that are not cached."""
    cost: float
    """Upper estimate for those tokens, in the currency of the prices."""

    def __str__(self) -> str:
        left = self.prompts - self.cached
        spend = f"at most about {self.tokens} tokens, cost {self.cost:.4f}"
        return f"{self.prompts} prompts, {self.cached} cached, {left} to send: {spend}"


def estimate_tokens(messages: Messages) -> int:
    """Return a generous guess of the tokens of a prompt: one token per three bytes, and four per message."""
    return sum(math.ceil(len(m["content"].encode()) / 3) + 4 for m in messages)


def parse_rating(text: str, scale: int) -> float | None:
    """Return the first number in `text` that lies on the scale 1..`scale`; `7/10` is 7; None without one."""
    for found in NUMBER.finditer(text):
        value = float(found.group())
        if 1 <= value <= scale:
            return value
    return None


def expected_rating(content: list[dict[str, Any]], scale: int) -> float | None:
    """Return the expectation of the rating over the alternatives of the first token that is a rating, None without one.

    On scales past 9 the token `1` may open `10`: when the answer goes on with a `0` the words decide (None).
    """
    for position, token in enumerate(content):
        if not _is_rating(token.get("token", ""), scale):
            continue
        rest = content[position + 1].get("token", "").strip() if position + 1 < len(content) else ""
        if rest[:1].isdigit() or rest[:1] == ".":
            return None
        weights: dict[float, float] = {}
        for option in token.get("top_logprobs") or [token]:
            if _is_rating(option.get("token", ""), scale):
                value = float(option["token"].strip())
                weights[value] = weights.get(value, 0.0) + math.exp(float(option["logprob"]))
        total = sum(weights.values())
        return sum(v * w for v, w in weights.items()) / total if total > 0 else None
    return None


def _is_rating(token: str, scale: int) -> bool:
    text = token.strip()
    return text.isascii() and text.isdigit() and 1 <= int(text) <= scale


class _Passing(Exception):
    """A failure that may pass, so that the request is tried again; carries the seconds that the server asked for."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass
class ChatEndpoint:
    """A judge (`in_context.Judge`) behind HTTP, with a cache on disk."""

    config: EndpointConfig
    cache: Path | None = None
    """Folder with one JSON file per prompt, named by the prompt's digest."""
    sleep: Callable[[float], None] = time.sleep
    """Waits between tries; replaceable, so that a test need not wait."""
    usage: Usage = field(default_factory=Usage)
    _no_logprobs: bool = False

    def rate(self, messages: Messages) -> float:
        """Return the rating of one conversation, from the cache or from the endpoint.

        An answer without a number is asked for once more. After that the middle of the scale is taken, and
        `usage.parse_failures` counts it (methods.md 3).

        Raises:
            BudgetExceeded: before the request that could pass the budget.
            LsatError: when the endpoint keeps failing or refuses the request.
        """
        kept = self._read(messages)
        if kept is not None:
            self.usage.cached += 1
            return kept
        rating: float | None = None
        answer = ""
        for _ in range(2):
            answer, rating = self._ask(messages)
            if rating is not None:
                break
        parsed = rating is not None
        if rating is None:
            self.usage.parse_failures += 1
            rating = (1 + self.config.scale) / 2
        self._write(messages, {"rating": rating, "answer": answer, "parsed": parsed, "model": self.config.model})
        return rating

    def dry_run(self, conversations: list[Messages]) -> Estimate:
        """Return what rating the conversations would cost at most; send nothing."""
        left = [m for m in conversations if self._read(m) is None]
        tokens_in = sum(estimate_tokens(m) for m in left)
        tokens_out = len(left) * self.config.max_answer_tokens
        return Estimate(
            len(conversations),
            len(conversations) - len(left),
            tokens_in + tokens_out,
            self._cost(tokens_in, tokens_out),
        )

    def digest(self, messages: Messages) -> str:
        """Return the cache name of a conversation: SHA-256 of model, scale, address and messages."""
        key = [self.config.url, self.config.model, self.config.scale, messages]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def _ask(self, messages: Messages) -> tuple[str, float | None]:
        """Make one paid request; try again after a failure that may pass."""
        self._check_budget(messages)
        retrying = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_after_attempt(self.config.retries + 1),
            wait=self._wait,
            sleep=self.sleep,
            before_sleep=self._count,
            reraise=True,
        )
        try:
            return retrying(lambda: self._read_answer(self._post(messages), messages))
        except _Passing as failure:
            raise LsatError(
                f"endpoint {self.config.url}: {failure} after {self.config.retries + 1} tries; answers so far are "
                "cached, run the same command later"
            ) from failure

    def _wait(self, state: RetryCallState) -> float:
        """Return the seconds that the server asked for, else doubling ones; never more than a minute."""
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.wait if isinstance(failure, _Passing) else None
        doubling = wait_exponential(self.config.backoff_s, max=LONGEST_WAIT)
        return doubling(state) if asked is None else min(asked, LONGEST_WAIT)

    def _count(self, state: RetryCallState) -> None:
        self.usage.retries += 1

    def _post(self, messages: Messages) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": config.max_answer_tokens,
        }
        asked = config.logprobs and not self._no_logprobs
        if asked:
            body |= {"logprobs": True, "top_logprobs": 10}
        address = f"{config.url.rstrip('/')}/chat/completions"
        try:
            reply = requests.post(address, json=body, headers=self._headers(), timeout=config.timeout_s)
        except (requests.Timeout, requests.ConnectionError) as error:
            raise _Passing(type(error).__name__) from error
        if reply.status_code in (408, 409, 429) or reply.status_code >= 500:
            raise _Passing(f"status {reply.status_code}", _retry_after(reply.headers.get("Retry-After")))
        if reply.status_code in (400, 422) and asked and "logprob" in reply.text:
            self._no_logprobs = True
            return self._post(messages)
        if reply.status_code != 200:
            raise LsatError(
                f"endpoint {address}: status {reply.status_code}: {reply.text[:200]!r}; mend the address, model or key"
            )
        try:
            tree = reply.json()
        except ValueError as error:
            raise _Passing("an answer that is not JSON") from error
        if not isinstance(tree, dict):
            raise _Passing("an answer that is not an object")
        return tree

    def _read_answer(self, tree: dict[str, Any], messages: Messages) -> tuple[str, float | None]:
        try:
            choice = tree["choices"][0]
            text = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise _Passing("an answer without choices") from error
        self._book(tree.get("usage") or {}, messages)
        content = (choice.get("logprobs") or {}).get("content") or []
        rating = expected_rating(content, self.config.scale)
        if rating is not None:
            self.usage.from_logprobs += 1
            return text, rating
        return text, parse_rating(text, self.config.scale)

    def _headers(self) -> dict[str, str]:
        if self.config.key_env is None:
            return {}
        key = os.environ.get(self.config.key_env)
        if not key:
            raise LsatError(
                f"endpoint: the environment variable {self.config.key_env} is not set; export the key there"
            )
        return {"Authorization": f"Bearer {key}"}

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6

    def _check_budget(self, messages: Messages) -> None:
        most_in, most_out = estimate_tokens(messages), self.config.max_answer_tokens
        spent = self.usage.tokens_in + self.usage.tokens_out
        limit, cap = self.config.budget_tokens, self.config.budget_cost
        if limit is not None and spent + most_in + most_out > limit:
            raise BudgetExceeded(f"endpoint: {spent} of {limit} tokens are spent; raise budget_tokens to go on")
        if cap is not None and self.usage.cost + self._cost(most_in, most_out) > cap:
            raise BudgetExceeded(f"endpoint: {self.usage.cost:.4f} of {cap} is spent; raise budget_cost to go on")

    def _book(self, usage: dict[str, Any], messages: Messages) -> None:
        tokens_in = int(usage.get("prompt_tokens") or estimate_tokens(messages))
        tokens_out = int(usage.get("completion_tokens") or self.config.max_answer_tokens)
        self.usage.requests += 1
        self.usage.tokens_in += tokens_in
        self.usage.tokens_out += tokens_out
        self.usage.cost += self._cost(tokens_in, tokens_out)

    def _read(self, messages: Messages) -> float | None:
        """Return the cached rating; a file that does not hold one counts as absent."""
        if self.cache is None:
            return None
        try:
            return float(json.loads((self.cache / f"{self.digest(messages)}.json").read_text())["rating"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, messages: Messages, record: dict[str, Any]) -> None:
        if self.cache is not None:
            write_atomic(self.cache / f"{self.digest(messages)}.json", json.dumps(record, sort_keys=True))


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; dates and nonsense count as none."""
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None
    return seconds if seconds is None or (math.isfinite(seconds) and seconds >= 0) else None
