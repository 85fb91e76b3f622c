"""The HTTP side of a replica: routes, bearer token, size limit. Nothing here can change what is served."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsat_ray.distributed.schemas import MAX_BODY, Answer, Answers, Question, ScoreBody, ServedModels, explain, problem
from lsat_ray.errors import LsatError
from lsat_ray.scoring.served import Served

GUARDED = ("/score", "/model")
"""Paths that ask for the token."""


class Refused(LsatError):
    """A question that the deployment cannot answer; becomes a 422."""

    def __init__(self, field: str, what: str, remedy: str) -> None:
        super().__init__(f"{field}: {what}; {remedy}")
        self.entry = problem(field, what, remedy)


class Gate:
    """Refuse, before a byte of the body is parsed, whoever lacks the token or sends too much."""

    def __init__(self, app: ASGIApp, token_sha256: str | None) -> None:
        self.app = app
        self.token_sha256 = token_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 413."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if scope["path"].startswith(GUARDED) and not self._admitted(headers.get(b"authorization", b"")):
            entry = problem("Authorization", "bearer token missing or wrong", "send Authorization: Bearer <token>")
            refusal = JSONResponse({"detail": [entry]}, 401, {"WWW-Authenticate": "Bearer"})
            return await refusal(scope, receive, send)
        body = await _body(receive, headers.get(b"content-length", b"0"))
        if body is None:
            entry = problem("body", f"larger than {MAX_BODY} bytes", "send fewer requests at a time")
            return await JSONResponse({"detail": [entry]}, 413)(scope, receive, send)
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(parts, None) or await receive()

        await self.app(scope, replay, send)

    def _admitted(self, header: bytes) -> bool:
        """Compare in constant time; the digests have one length, so not even the token's length shows."""
        if self.token_sha256 is None:
            return True
        scheme, _, token = header.partition(b" ")
        given = hashlib.sha256(token.strip()).hexdigest()
        return hmac.compare_digest(given, self.token_sha256) and scheme.lower() == b"bearer"


async def _body(receive: Receive, announced: bytes) -> bytes | None:
    """Return the body, or None when it is larger than MAX_BODY, announced or not."""
    if announced.isdigit() and int(announced) > MAX_BODY:
        return None
    body = b""
    while len(body) <= MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return None if len(body) > MAX_BODY else body


class Answering(Protocol):
    """What the routes need of a replica (`scorer.Scorer`)."""

    served: Served

    async def ask(self, questions: list[Question]) -> list[Answer]:
        """Return one answer per question."""

    def served_models(self) -> ServedModels:
        """Return the served models."""


def build_app(scorer: Answering, token_sha256: str | None) -> FastAPI:
    """Return the routes of a replica.

    Args:
        scorer: answers.
        token_sha256: SHA-256 of the bearer token, hex; None asks for none.
    """
    app = FastAPI(title="lsat_ray", description="P(like) of a user for an item, from the user's labelled history.")
    app.add_middleware(Gate, token_sha256=token_sha256)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": explain(error.errors())}, 422)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": [error.entry]}, 422)

    @app.post("/score")
    async def score(body: ScoreBody) -> Answer | Answers:
        """Return P(like) with the strategy, period and digest of the model that gave it."""
        answers = await scorer.ask(body.questions())
        return answers[0] if body.requests is None else Answers(answers=answers)

    @app.get("/model")
    async def model() -> ServedModels:
        """Return the served models."""
        return scorer.served_models()

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Say that the replica answers, and with which version."""
        return {"status": "ok", "version": scorer.served.version}

    return app
