"""The chat endpoint against a local server that speaks the protocol, its failures included."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lsat_ray.baselines.endpoint import (
    BudgetExceeded,
    ChatEndpoint,
    EndpointConfig,
    estimate_tokens,
    expected_rating,
    parse_rating,
)
from lsat_ray.errors import LsatError

ASK = [{"role": "user", "content": "How much?"}]


class Server(ThreadingHTTPServer):
    """Answers requests from a script; the last entry repeats."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Callable[[dict[str, Any]], tuple[int, Any, dict[str, str]] | None]] = []
        self.seen: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step = self.server.script[min(len(self.server.seen), len(self.server.script) - 1)]
        self.server.seen.append(body)
        self.server.headers_seen.append(dict(self.headers))
        reply = step(body)
        if reply is None:  # hang until the test is over
            self.server.release.wait(20)
            return
        status, tree, headers = reply
        payload = tree.encode() if isinstance(tree, str) else json.dumps(tree).encode()
        self.send_response(status if self.path == "/v1/chat/completions" else 404)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.release.set()
    made.shutdown()
    made.server_close()


def says(text: str, tops: list[dict[str, float]] | None = None) -> Callable[[dict[str, Any]], Any]:
    """Answer with `text`; `tops` gives token -> probability for every answer token."""

    def reply(body: dict[str, Any]) -> Any:
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        if tops is not None and body.get("logprobs"):
            content = []
            for options in tops:
                alternatives = [{"token": t, "logprob": math.log(p)} for t, p in options.items()]
                content.append({**alternatives[0], "top_logprobs": alternatives})
            choice["logprobs"] = {"content": content}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 2}}, {}

    return reply


def fails(status: int, body: Any = "busy", **headers: str) -> Callable[[dict[str, Any]], Any]:
    return lambda _: (status, body, {k.replace("_", "-"): v for k, v in headers.items()})


def client(server: Server, cache: Path | None = None, **settings: Any) -> tuple[ChatEndpoint, list[float]]:
    waits: list[float] = []
    config = EndpointConfig(url=server.url, model="m", **({"key_env": None} | settings))
    return ChatEndpoint(config, cache, sleep=waits.append), waits


def test_logprobs_give_the_expected_rating(server: Server) -> None:
    server.script = [says("8", [{"8": 0.5, " 6": 0.25, "two": 0.25}])]
    endpoint, _ = client(server)
    assert endpoint.rate(ASK) == pytest.approx((8 * 0.5 + 6 * 0.25) / 0.75)
    assert endpoint.usage.from_logprobs == 1
    assert server.seen[0]["temperature"] == 0 and server.seen[0]["messages"] == ASK


def test_missing_logprobs_fall_back_to_the_words(server: Server) -> None:
    server.script = [says("I would say 7/10.")]
    endpoint, _ = client(server)
    assert endpoint.rate(ASK) == 7.0
    assert endpoint.usage.from_logprobs == 0 and endpoint.usage.parse_failures == 0


def test_an_endpoint_that_refuses_logprobs_is_asked_without_from_then_on(server: Server) -> None:
    server.script = [fails(400, {"error": "logprobs is not supported"}), says("3")]
    endpoint, _ = client(server)
    assert endpoint.rate(ASK) == 3.0
    endpoint.rate([{"role": "user", "content": "Another"}])
    assert ["logprobs" in body for body in server.seen] == [True, False, False]


def test_429_and_5xx_are_tried_again_with_growing_waits(server: Server) -> None:
    server.script = [fails(429), fails(503), fails(429, Retry_After="7"), fails(500), says("9")]
    endpoint, waits = client(server)
    assert endpoint.rate(ASK) == 9.0
    assert waits == [1.0, 2.0, 7.0, 8.0]
    assert endpoint.usage.retries == 4 and endpoint.usage.requests == 1


def test_a_timeout_is_tried_again(server: Server) -> None:
    server.script = [lambda _: None, says("4")]
    endpoint, waits = client(server, timeout_s=0.2)
    assert endpoint.rate(ASK) == 4.0
    assert waits == [1.0]


@pytest.mark.parametrize("body", ["not json", {"choices": []}, {"error": "?"}, [1], {"choices": [{"message": None}]}])
def test_a_malformed_answer_is_tried_again(server: Server, body: Any) -> None:
    server.script = [fails(200, body), says("5")]
    endpoint, waits = client(server)
    assert endpoint.rate(ASK) == 5.0 and len(waits) == 1


def test_an_endpoint_that_keeps_failing_is_an_error_that_says_so(server: Server) -> None:
    server.script = [fails(429)]
    endpoint, waits = client(server, retries=3)
    with pytest.raises(LsatError, match=r"status 429 after 4 tries"):
        endpoint.rate(ASK)
    assert waits == [1.0, 2.0, 4.0]


def test_a_refusal_is_not_tried_again(server: Server) -> None:
    server.script = [fails(401, "wrong key")]
    endpoint, waits = client(server)
    with pytest.raises(LsatError, match="status 401"):
        endpoint.rate(ASK)
    assert waits == [] and len(server.seen) == 1


def test_nobody_listens() -> None:
    waits: list[float] = []
    config = EndpointConfig(url="http://127.0.0.1:9/v1", model="m", key_env=None, retries=1)
    with pytest.raises(LsatError, match="ConnectionError"):
        ChatEndpoint(config, sleep=waits.append).rate(ASK)
    assert waits == [1.0]


def test_nonsense_is_asked_once_more_then_the_middle_stands_for_it(server: Server, tmp_path: Path) -> None:
    server.script = [says("As a language model"), says("a good 2"), says("hm"), says("42")]
    endpoint, _ = client(server, tmp_path)
    assert endpoint.rate(ASK) == 2.0
    assert endpoint.rate([{"role": "user", "content": "Another"}]) == 5.5
    assert endpoint.usage.parse_failures == 1 and endpoint.usage.requests == 4


def test_answers_are_cached_by_prompt_digest(server: Server, tmp_path: Path) -> None:
    server.script = [says("6")]
    first, _ = client(server, tmp_path)
    assert first.rate(ASK) == 6.0
    second, _ = client(server, tmp_path)
    assert second.rate(ASK) == 6.0
    assert len(server.seen) == 1 and second.usage.cached == 1 and second.usage.requests == 0
    assert [p.name for p in tmp_path.iterdir()] == [f"{first.digest(ASK)}.json"]
    other = ChatEndpoint(EndpointConfig(url=server.url, model="other", key_env=None), tmp_path)
    assert other.digest(ASK) != first.digest(ASK)


def test_a_broken_cache_file_is_replaced(server: Server, tmp_path: Path) -> None:
    server.script = [says("6")]
    endpoint, _ = client(server, tmp_path)
    (tmp_path / f"{endpoint.digest(ASK)}.json").write_text('{"rat')
    assert endpoint.rate(ASK) == 6.0
    assert json.loads((tmp_path / f"{endpoint.digest(ASK)}.json").read_text())["rating"] == 6.0


def test_the_budget_stops_before_it_is_passed(server: Server) -> None:
    server.script = [says("6")]
    endpoint, _ = client(server, budget_tokens=113)
    endpoint.rate(ASK)  # 102 tokens by the server's count
    with pytest.raises(BudgetExceeded, match="102 of 113"):
        endpoint.rate(ASK)
    priced, _ = client(server, budget_cost=1e-6, price_in=10.0)
    with pytest.raises(BudgetExceeded, match="budget_cost"):
        priced.rate(ASK)
    assert len(server.seen) == 1


def test_a_dry_run_sends_nothing_and_tells_the_cost(server: Server, tmp_path: Path) -> None:
    server.script = [says("6")]
    endpoint, _ = client(server, tmp_path, price_in=1e6, price_out=2e6)
    endpoint.rate(ASK)
    another = [{"role": "user", "content": "x" * 30}]
    found = endpoint.dry_run([ASK, another])
    assert len(server.seen) == 1
    assert (found.prompts, found.cached, found.tokens) == (2, 1, estimate_tokens(another) + 5)
    assert found.cost == pytest.approx(14 + 2 * 5) and "1 to send" in str(found)


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [says("6")]
    endpoint, _ = client(server, key_env="LSAT_TEST_KEY")
    monkeypatch.delenv("LSAT_TEST_KEY", raising=False)
    with pytest.raises(LsatError, match="LSAT_TEST_KEY"):
        endpoint.rate(ASK)
    monkeypatch.setenv("LSAT_TEST_KEY", "abc")
    endpoint.rate(ASK)
    assert server.headers_seen[0]["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("7", 7),
        ("Rating: 8.5", 8.5),
        ("7/10", 7),
        ("10", 10),
        ("0", None),
        ("11 or 3", 3),
        ("-5", None),
        ("none", None),
    ],
)
def test_parse_rating(text: str, rating: float | None) -> None:
    assert parse_rating(text, 10) == rating


def test_a_rating_split_over_tokens_is_left_to_the_words() -> None:
    one, zero = {"token": "1", "logprob": 0.0}, {"token": "0", "logprob": 0.0}
    assert expected_rating([one, zero], 10) is None
    assert expected_rating([one], 10) == 1.0
    assert expected_rating([{"token": "²", "logprob": 0.0}], 10) is None
