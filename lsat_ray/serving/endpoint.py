"""The HTTP side of a replica: routes, bearer token, size limit. Nothing here can change what is served."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsat_ray.errors import LsatError
from lsat_ray.scoring.prefix import Ask, Refused
from lsat_ray.serving.catalogue import Catalogue
from lsat_ray.serving.desk import Desk, Overloaded
from lsat_ray.serving.metrics import Metrics
from lsat_ray.serving.schemas import (
    MAX_BODY,
    Answer,
    Answers,
    Health,
    Problems,
    RankBody,
    Ranking,
    RunProgress,
    ScoreBody,
    ServedModels,
    explain,
    problem,
)

OPEN = ("/healthz", "/docs", "/openapi.json")
"""Paths that ask for no token; what is under them asks for none either. The page asks for none; what it shows does."""
ROUTES = ("/", "/v1/score", "/v1/rank", "/v1/models", "/v1/run", "/score", "/model", "/metrics", "/healthz")
"""Paths that are counted under their own names."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
"""What the page may load and where it may send to."""


class Gate:
    """Refuse, before a byte of the body is parsed, whoever lacks the token or sends too much; count every request."""

    def __init__(self, app: ASGIApp, token_sha256: str | None, metrics: Metrics) -> None:
        self.app = app
        self.token_sha256 = token_sha256
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 413."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._pass(scope, receive, counted, path)
        finally:
            self.metrics.request(path if path in ROUTES else "other", status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        headers = dict(scope["headers"])
        free = path in ("", "/") or any(path == p or path.startswith(f"{p}/") for p in OPEN)
        if not free and not self._admitted(headers.get(b"authorization", b"")):
            entry = problem("Authorization", "bearer token missing or wrong", "send Authorization: Bearer <token>")
            return await _refusal(401, [entry], {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        body = await _body(receive, headers.get(b"content-length", b"0"))
        if body is None:
            entry = problem("body", f"larger than {MAX_BODY} bytes", "send fewer requests at a time")
            return await _refusal(413, [entry])(scope, receive, send)
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


def _refusal(status: int, entries: list[dict[str, str]], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": entries}, status, headers)


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problems, "description": "The body cannot be read."},
    413: {"model": Problems, "description": "The body is too large."},
    422: {"model": Problems, "description": "A field is wrong, or what it says cannot be answered."},
    429: {
        "model": Problems,
        "description": "More waits than can be answered in time.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}


def build_app(
    desk: Desk,
    token_sha256: str | None = None,
    history: int = 10,
    metrics_text: Callable[[], Awaitable[str]] | None = None,
    catalogue: Catalogue | None = None,
) -> FastAPI:
    """Return the routes of a replica.

    Args:
        desk: answers.
        token_sha256: SHA-256 of the bearer token, hex; None asks for none.
        history: longest history that may be sent.
        metrics_text: what `/metrics` says (None: the desk's own metrics).
        catalogue: what a ranking without candidates orders.
    """
    app = FastAPI(
        title="lsat_ray",
        description="P(like) of a user for an item, from the user's labelled history.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Gate, token_sha256=token_sha256, metrics=desk.metrics)
    _handle_errors(app)
    _serve_docs(app)
    _serve_page(app)
    bearer = [Depends(HTTPBearer(auto_error=False))] if token_sha256 else []
    guarded: dict[int | str, dict[str, Any]] = {}
    if token_sha256:
        guarded = {401: {"model": Problems, "description": "The bearer token is missing or wrong."}}
    posts: dict[str, Any] = {"dependencies": bearer, "responses": {**REFUSALS, **guarded}}
    gets: dict[str, Any] = {"dependencies": bearer, "responses": guarded}

    def checked(asks: list[Ask]) -> list[Ask]:
        for number, ask in enumerate(asks):
            if len(ask.history) > history:
                what = f"{len(ask.history)} events, this deployment reads {history}"
                raise Refused("history", what, f"send the last {history}", number)
        return asks

    @app.post("/v1/score", **posts)
    @app.post("/score", include_in_schema=False, **posts)
    async def score(body: ScoreBody) -> Answer | Answers:
        """Return P(like) of one question or of several; all answers of a call come from one version."""
        try:
            answers = [Answer.of(result) for result in await desk.ask(checked(body.asks()))]
        except Refused as refusal:
            field = refusal.field.replace("candidates.0", "target")
            what = refusal.what.replace("candidates.0", "its target")
            place = f"requests.{refusal.ask}." if body.requests else ""
            raise Refused(place + field, what, refusal.remedy) from refusal
        return answers[0] if body.requests is None else Answers(answers=answers)

    @app.post("/v1/rank", response_model_exclude_none=True, **posts)
    async def rank(body: Annotated[RankBody, Body()]) -> Ranking:
        """Order up to 1,000 candidates for a user, or the most popular titles of the deployment's catalogue.

        The history is computed once for all.
        """
        titles, places = body.candidates, None
        if titles is None:
            places = catalogue.candidates([event.title for event in body.history]) if catalogue else []
            if not places:
                raise Refused("candidates", "missing, and this deployment lists nothing new", "add candidates")
            titles = [catalogue.titles[i] for i in places] if catalogue else []
        (result,) = await desk.ask(checked([body.ask(body.history, titles)]))
        return Ranking.of(result, body.top_n) if places is None else Ranking.listed(result, body.top_n, places, titles)

    @app.get("/v1/models", **gets)
    @app.get("/model", include_in_schema=False, **gets)
    async def models() -> ServedModels:
        """Return the served models."""
        return ServedModels.of(desk.served, desk.default_name)

    broken: dict[int | str, dict[str, Any]] = {
        503: {"model": Problems, "description": "A file of the run folder is broken."}
    }

    @app.get("/v1/run", dependencies=bearer, responses={**guarded, **broken})
    async def run() -> RunProgress:
        """Return how far the run is: AUC per tested period, coefficients, changes of what is served."""
        try:
            return await asyncio.to_thread(RunProgress.of, desk.run_dir)
        except LsatError as error:
            raise HTTPException(503, str(error)) from error

    @app.get("/metrics", response_class=PlainTextResponse, **gets)
    async def metrics() -> str:
        """Return the counters of all replicas in Prometheus' text format."""
        return await (metrics_text or desk.metrics_text)()

    @app.get("/healthz")
    async def healthz() -> Health:
        """Say that the replica answers, and with which version."""
        return Health(status="ok", version=desk.served.version)

    return app


def _handle_errors(app: FastAPI) -> None:
    """Give every refusal one format."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _refusal(422, explain(error.errors()))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(422, [problem(error.field, error.what, error.remedy)])

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> Response:
        seconds = str(math.ceil(error.wait_s))
        entry = problem("request", "more waits than can be answered in time", f"try again in {seconds} s")
        return _refusal(429, [entry], {"Retry-After": seconds})

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        remedy = {404: "see /docs for the paths", 405: "see /docs for the methods", 503: "try again"}.get(
            error.status_code, "send a JSON object"
        )
        field = "body" if error.status_code == 400 else request.method
        return _refusal(error.status_code, [problem(field, str(error.detail), remedy)], dict(error.headers or {}))


def _serve_page(app: FastAPI) -> None:
    """Serve the live page, which loads nothing from elsewhere and may send nothing elsewhere."""
    html = files("lsat_ray.serving").joinpath("page.html").read_text()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})


def _serve_docs(app: FastAPI) -> None:
    """Serve Swagger UI from the installed package, by relative addresses: no network, any route prefix."""
    app.mount("/docs/static", StaticFiles(directory=str(files("fastapi_swagger") / "resources")))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/static/favicon-32x32.png",
        )
