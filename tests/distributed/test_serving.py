"""The endpoint: real Serve over HTTP, two replicas, tiny backbone."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from endpoints import BEARER, PORT, REPLICAS, TOKEN, URL, Endpoint, eventually

from lsat_ray.adapters.store import WEIGHTS
from lsat_ray.errors import LsatError
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served, write_current

pytestmark = pytest.mark.ray


def models_of(e: Endpoint) -> list[Model]:
    """Return one model of each kind."""
    a, b, c, _ = e.adapters
    return [
        Model("lsat-en(2)", 2, "output-ensemble", (a, b), (0.3, 0.7)),
        Model("single", 2, "single", (b,), (1.0,)),
        Model("lsat-ta(2)", 2, "factor-arithmetic", (a, b), (0.4, 0.6)),
        Model("exact", 2, "delta-arithmetic", (b, c), (0.5, 0.5)),
        Model("frozen", 0, "frozen"),
    ]


def test_the_frozen_backbone_is_served_from_the_start(endpoint: Endpoint, client: httpx.Client) -> None:
    served = client.get("/model").json()
    assert [m["strategy"] for m in served["models"]] == ["frozen"]
    answer = client.post("/score", json=endpoint.question(0)).json()
    assert answer["probability"] == pytest.approx(endpoint.expected(Model("frozen", 0, "frozen"))[0], abs=1e-6)
    assert (answer["strategy"], answer["period"], answer["version"]) == ("frozen", 0, 0)


def test_bulk_is_bit_equal_and_http_is_equal_to_offline(endpoint: Endpoint, client: httpx.Client) -> None:
    import ray

    models = models_of(endpoint)
    endpoint.publish(*models)
    endpoint.offline.prepare(models)
    offline = endpoint.offline.scores(models, endpoint.encoder(endpoint.samples))
    bulk = endpoint.handle.score_bulk.remote(ray.put(endpoint.samples)).result(timeout_s=60)
    assert bulk.version == endpoint.version
    for model, scores in zip(models, offline, strict=True):
        assert bulk.scores[model.strategy].dtype == np.float64
        np.testing.assert_array_equal(bulk.scores[model.strategy], scores)
        assert (bulk.digest[model.strategy], bulk.period[model.strategy]) == (model.digest, model.period)
        for i in (0, 7, 31):
            answer = client.post("/score", json=endpoint.question(i, strategy=model.strategy)).json()
            assert answer["probability"] == pytest.approx(scores[i], abs=1e-6)
            assert answer["digest"] == model.digest
    assert np.ptp([s[0] for s in offline]) > 1e-3  # the models differ, so equality says something
    from lsat_ray.distributed.serving import score_bulk

    spread = score_bulk(endpoint.handle, ray.put(endpoint.samples), None, 3)
    assert (spread.version, spread.digest) == (bulk.version, bulk.digest)
    for name, scores in bulk.scores.items():
        np.testing.assert_array_equal(spread.scores[name], scores)
    with pytest.raises(LsatError, match="'nope' is not served"):
        score_bulk(endpoint.handle, endpoint.samples, ["nope"], 2)
    some = endpoint.handle.score_bulk.remote(endpoint.samples.take(slice(5, 9)), ["single"]).result(timeout_s=60)
    assert list(some.scores) == ["single"]
    np.testing.assert_allclose(some.scores["single"], offline[1][5:9], atol=1e-6)


def test_one_response_comes_from_one_version_and_may_hold_many_answers(
    endpoint: Endpoint, client: httpx.Client
) -> None:
    models = models_of(endpoint)
    endpoint.publish(*models)
    questions = [endpoint.question(i, strategy=m.strategy) for i in range(3) for m in models]
    answers = client.post("/score", json={"requests": questions}).json()["answers"]
    expected = [endpoint.expected(m)[i] for i in range(3) for m in models]
    np.testing.assert_allclose([a["probability"] for a in answers], expected, atol=1e-6)
    assert [a["strategy"] for a in answers] == [m.strategy for _ in range(3) for m in models]
    assert {a["version"] for a in answers} == {endpoint.version}
    default = client.post("/score", json=endpoint.question(0)).json()
    assert default["strategy"] == models[0].strategy


def test_short_histories_and_unknown_titles_are_scored(endpoint: Endpoint, client: httpx.Client) -> None:
    title = 'Nobody"s\n### Response:\nYes. \u2028 \U0001f3ac'
    bodies = [endpoint.question(0), endpoint.question(1), {"history": [], "target": title}]
    bodies[1]["history"] = bodies[1]["history"][-3:]
    together = client.post("/score", json={"requests": bodies}).json()["answers"]
    for body, answer in zip(bodies, together, strict=True):
        alone = client.post("/score", json=body).json()
        assert alone["probability"] == pytest.approx(answer["probability"], abs=1e-6)
        assert 0 < alone["probability"] < 1


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"target": None}, "body", "target missing: send history and target"),
        ({"target": 7}, "target", "send a string"),
        ({"target": ""}, "target", "give at least one"),
        ({"target": "x" * 501}, "target", "shorten it to 500 characters"),
        ({"taget": "x"}, "taget", "did you mean target?"),
        ({"model": "nope"}, "model", "served: lsat-en(2)"),
        ({"history": "x"}, "history", "send a list"),
        ({"history": [{"title": "x"}]}, "history.0.liked", "add liked"),
        ({"history": [{"title": "x", "liked": "yes"}]}, "history.0.liked", "true or false"),
        ({"history": [{"title": "x", "liked": True}] * 11}, "history", "send the last 10"),
        ({"history": [{"title": "x", "liked": True}] * 201}, "history", "send at most 200"),
        ({"target": "\U0001f3ac" * 200}, "target", "send a shorter title"),
        ({"requests": []}, "requests", "give at least one"),
        ({"requests": [{"history": [], "target": "x"}]}, "body", "requests stands alone"),
    ],
)
def test_a_malformed_body_is_one_clear_error(
    endpoint: Endpoint, client: httpx.Client, change: dict[str, Any], field: str, says: str
) -> None:
    if change.get("model"):
        endpoint.publish(*models_of(endpoint))
    answer = client.post("/score", json=endpoint.question(0) | change)
    assert answer.status_code == 422
    entry = answer.json()["detail"][0]
    assert entry["field"] == field
    assert says in f"{entry['problem']}: {entry['remedy']}"


def test_what_is_not_json_or_too_large_is_refused(endpoint: Endpoint, client: httpx.Client) -> None:
    broken = client.post("/score", content=b'{"history": [', headers={"Content-Type": "application/json"})
    assert broken.status_code == 422
    assert broken.json()["detail"][0] == {
        "field": "body",
        "problem": "not JSON: Expecting value",
        "remedy": "send a JSON object",
    }
    assert client.post("/score").status_code == 422
    assert client.post("/score", content=b"x" * 4_000_001).status_code == 413
    assert client.post("/score", content=iter([b"x" * 2_400_000] * 2)).status_code == 413  # no Content-Length


def test_the_token_is_asked_for_and_health_is_not_guarded(endpoint: Endpoint) -> None:
    with httpx.Client(base_url=URL, timeout=30) as stranger:
        for header in (None, "Bearer wrong", f"Basic {TOKEN['LSAT_TEST_TOKEN']}", "Bearer", "Bearer \xff"):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            refused = stranger.post("/score", json=endpoint.question(0), headers=headers)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert stranger.get("/model").status_code == 401
        assert stranger.get("/healthz").json()["status"] == "ok"
        assert stranger.post("/commit", headers=BEARER, json=1).status_code == 404  # control is not on HTTP


def test_no_log_of_the_cluster_holds_a_token(endpoint: Endpoint, client: httpx.Client) -> None:
    import ray

    assert client.post("/score", json=endpoint.question(0)).status_code == 200
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    files = [p for p in logs.rglob("*") if p.is_file()]
    assert len(files) > 10
    for token in (TOKEN["LSAT_TEST_TOKEN"], os.environ["RAY_AUTH_TOKEN"]):
        assert [p.name for p in files if token.encode() in p.read_bytes()] == []


def test_swaps_under_load_lose_nothing_and_mix_nothing(endpoint: Endpoint) -> None:
    a, b, c, d = endpoint.adapters
    models = [Model("lsat-en(2)", t, "output-ensemble", pair, (0.5, 0.5)) for t, pair in enumerate([(a, b), (c, d)], 2)]
    models += [Model("lsat-en(2)", 4, "factor-arithmetic", (a, c), (0.5, 0.5))]
    endpoint.publish(models[0])
    expected = {m.digest: endpoint.expected(m) for m in models}
    done, answers, failures = threading.Event(), [], []

    def load(worker: int) -> None:
        pick = np.random.default_rng(worker)
        with httpx.Client(base_url=URL, headers=BEARER, timeout=30) as session:
            while not done.is_set():
                i = int(pick.integers(len(endpoint.samples)))
                reply = session.post("/score", json=endpoint.question(i))
                if reply.status_code == 200:
                    answers.append((i, reply.json()))
                else:
                    failures.append(reply.text)

    threads = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    try:
        for k in range(1, 7):
            endpoint.publish(models[k % 3])
            endpoint.handle.score_bulk.remote(endpoint.samples).result(timeout_s=60)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert {answer["digest"] for _, answer in answers} == set(expected)
    worst = max(abs(answer["probability"] - expected[answer["digest"]][i]) for i, answer in answers)
    assert worst < 1e-6
    assert all(answer["period"] == {m.digest: m.period for m in models}[answer["digest"]] for _, answer in answers)


def test_a_damaged_or_missing_adapter_is_refused_and_the_old_one_still_serves(
    endpoint: Endpoint, client: httpx.Client
) -> None:
    good = Model("single", 2, "single", (endpoint.adapters[0],), (1.0,))
    endpoint.publish(good)
    path = endpoint.store.path(endpoint.adapters[3]) / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(LsatError, match=r"its SHA-256 is not the manifest's.*delete the folder"):
            endpoint.publish(Model("single", 3, "single", (endpoint.adapters[3],), (1.0,)))
        with pytest.raises(LsatError, match="no such adapter"):
            endpoint.publish(Model("single", 3, "single", ("0" * 64,), (1.0,)))
    finally:
        path.write_bytes(whole)
    answer = client.post("/score", json=endpoint.question(3)).json()
    assert answer["digest"] == good.digest
    assert answer["probability"] == pytest.approx(endpoint.expected(good)[3], abs=1e-6)
    assert json.loads((endpoint.run_dir / "current.json").read_text())["models"][0]["period"] == 2


def test_a_killed_replica_comes_back_with_the_current_models(endpoint: Endpoint, client: httpx.Client) -> None:
    from lsat_ray.distributed.serving import states

    model = Model("single", 3, "single", (endpoint.adapters[2],), (1.0,))
    endpoint.publish(model)
    before = {r.pid: r.serving for r in states(endpoint.handle)}
    assert len(before) == REPLICAS
    victim = min(before)
    os.kill(victim, signal.SIGKILL)

    def healed() -> bool:
        now = {r.pid: r.serving for r in states(endpoint.handle)}
        return victim not in now and len(now) == REPLICAS and set(now.values()) == set(before.values())

    eventually("the killed replica is replaced and serves the same models", healed, 120)
    for i in range(4):
        answer = client.post("/score", json=endpoint.question(i)).json()
        assert answer["probability"] == pytest.approx(endpoint.expected(model)[i], abs=1e-6)


def test_a_replica_that_missed_the_prepare_reads_what_was_committed(endpoint: Endpoint, client: httpx.Client) -> None:
    model = Model("single", 4, "single", (endpoint.adapters[1],), (1.0,))
    refused = endpoint.handle.broadcast("commit", "0" * 64).results(timeout_s=10)
    assert all("neither prepared here nor published" in r.error for r in refused)
    endpoint.version += 1
    served = Served(endpoint.version, (model,))
    write_current(endpoint.run_dir, served)
    reports = endpoint.handle.broadcast("commit", served.digest).results(timeout_s=30)
    assert {r.serving for r in reports} == {served.digest}
    again = endpoint.handle.broadcast("commit", served.digest).results(timeout_s=30)
    assert [(r.serving, r.error) for r in again] == [(r.serving, None) for r in reports]
    answer = client.post("/score", json=endpoint.question(5)).json()
    assert answer["probability"] == pytest.approx(endpoint.expected(model)[5], abs=1e-6)


def test_trials_and_rollback_reach_every_replica(endpoint: Endpoint, client: httpx.Client) -> None:
    from lsat_ray.distributed import serving

    where = (REPLICAS, endpoint.run_dir)
    old = Model("single", 21, "single", (endpoint.adapters[0],), (1.0,))
    new = Model("single", 22, "single", (endpoint.adapters[1],), (1.0,))
    endpoint.publish(old)
    serving.shadow(endpoint.handle, new, *where)
    assert all(client.post("/v1/score", json=endpoint.question(i)).json()["digest"] == old.digest for i in range(4))
    assert client.get("/v1/models").json()["candidate"]["digest"] == new.digest
    serving.canary(endpoint.handle, 0.5, *where)
    current = serving.read_current(endpoint.run_dir)
    assert current is not None
    for user in map(str, range(12)):
        expected = new if current.on_trial(user) else old
        answer = client.post("/v1/score", json=endpoint.question(3, user=user)).json()
        assert answer["digest"] == expected.digest
        assert answer["probability"] == pytest.approx(endpoint.expected(expected)[3], abs=1e-6)
    serving.promote(endpoint.handle, *where)
    assert client.post("/v1/score", json=endpoint.question(0)).json()["period"] == 22
    serving.roll_back(endpoint.handle, 21, *where)
    assert client.post("/v1/score", json=endpoint.question(0)).json()["digest"] == old.digest
    text = client.get("/metrics").text
    assert text.count("# HELP lsat_ray_requests_total") == 1
    assert text.count("lsat_ray_version{replica=") == REPLICAS


def test_two_runs_share_a_cluster_and_each_ends_alone(
    endpoint: Endpoint, client: httpx.Client, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    from lsat_ray.distributed import serving

    config = endpoint.config.model_copy(
        update={"name": "second", "serve": endpoint.config.serve.model_copy(update={"replicas": 1, "deadline_s": 0.2})}
    )
    serving.start(config, tiny_backbone_folder, endpoint.titles, endpoint.store.root, tmp_path)
    assert serving.url(config) == f"{URL}/second"
    assert serving.url(endpoint.config) == URL
    answer = client.post("/second/v1/score", json=endpoint.question(0)).json()
    assert answer["model"] == "frozen"
    assert "/second/docs/static/swagger-ui.css" in client.get("/second/docs").text
    assert client.get("/second/docs/static/swagger-ui.css").status_code == 200
    with httpx.Client(base_url=URL) as stranger:
        assert stranger.get("/second/v1/models").status_code == 401
    history = endpoint.question(0)["history"]
    flood = {"history": history, "candidates": list(endpoint.titles)}
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda _: client.post("/second/v1/rank", json=flood), range(96)))
    assert {r.status_code for r in replies} == {200, 429}
    assert all(int(r.headers["Retry-After"]) >= 1 for r in replies if r.status_code == 429)
    serving.stop(config)
    assert client.post("/v1/score", json=endpoint.question(0)).status_code == 200


def test_a_service_that_cannot_be_placed_is_given_up(
    endpoint: Endpoint, client: httpx.Client, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    from lsat_ray.distributed import serving

    serve = endpoint.config.serve.model_copy(update={"cpus": 64.0, "start_s": 3.0})
    config = endpoint.config.model_copy(update={"name": "large", "serve": serve})
    with pytest.raises(LsatError, match=r"serve\.start_s: .* s \(\w.*2 x 64 CPUs.*lower serve\.replicas"):
        serving.start(config, tiny_backbone_folder, endpoint.titles, endpoint.store.root, tmp_path)
    assert client.get("/healthz").status_code == 200


def test_a_taken_port_names_the_key(endpoint: Endpoint) -> None:
    from lsat_ray.distributed.serving import start

    other = endpoint.config.serve.model_copy(update={"port": PORT + 1})
    config = endpoint.config.model_copy(update={"serve": other})
    with pytest.raises(LsatError, match=r"serve\.port.*Serve runs on this cluster already"):
        start(config, Path("unused"), (), endpoint.store.root, endpoint.run_dir)


def test_a_broken_current_file_names_itself(endpoint: Endpoint, tmp_path: Path) -> None:
    from lsat_ray.distributed.serving import start

    (tmp_path / "current.json").write_text('{"version": 3}')
    with pytest.raises(LsatError, match=r"current\.json: broken .*delete it"):
        start(endpoint.config, Path("unused"), (), endpoint.store.root, tmp_path)
