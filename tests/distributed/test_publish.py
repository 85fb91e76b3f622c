"""Publish and its file, against replicas that misbehave; no cluster."""

from __future__ import annotations

import socket
import threading
import types
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray.exceptions import RayActorError

from lsat_ray.config import Experiment, ServeConfig
from lsat_ray.distributed import serving
from lsat_ray.distributed.backend import RayBackend
from lsat_ray.distributed.scorer import Report
from lsat_ray.errors import LsatError
from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import FROZEN, Served, read_current, write_current
from lsat_ray.serving.desk import Bulk

MODEL = Model("short-term", 3, "single", ("a" * 64,), (1.0,))
NEXT = Served(7, (MODEL,))


class Replicas:
    """A handle whose replicas answer from a script: method -> one list of reports, or an error, a call."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.script = script
        self.calls: list[str] = []
        self.args: list[Any] = []

    def broadcast(self, method: str, *args: Any) -> Replicas:
        self.calls.append(method)
        self.args.append(args)
        return self

    def results(self, timeout_s: float) -> list[Report]:
        several = self.script[self.calls[-1]]
        answer = several.pop(0) if len(several) > 1 else several[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def old(n: int, prepared: bool = False, error: str | None = None) -> Report:
    return Report(f"r{n}", n, "old", NEXT.digest if prepared else None, error)


def new(n: int) -> Report:
    return Report(f"r{n}", n, NEXT.digest, None)


def publish(replicas: Replicas, run_dir: Path, seconds: float = 5.0) -> None:
    serving.publish(replicas, [MODEL], 7, 2, run_dir, seconds)  # type: ignore[arg-type]


def test_a_replica_that_dies_in_any_phase_is_waited_for(tmp_path: Path) -> None:
    replicas = Replicas(
        {
            "prepare": [RayActorError(), [old(1, True)], [old(1, True), old(2, True)]],
            "commit": [[new(1), old(3, error="not prepared here")], RayActorError(), [new(1), new(3)]],
            "state": [[new(1)], [new(1), new(3)]],
        }
    )
    publish(replicas, tmp_path)
    assert replicas.calls == ["prepare"] * 3 + ["commit"] * 3 + ["state"] * 2
    assert read_current(tmp_path) == NEXT


class Obedient:
    """A handle whose two replicas do what they are told."""

    def __init__(self) -> None:
        self.serving, self.prepared = "", ""

    def broadcast(self, method: str, *args: Any) -> Obedient:
        if method == "prepare":
            self.prepared = Served.from_json(args[0]).digest
        if method == "commit":
            assert args == (self.prepared,)
            self.serving = self.prepared
        return self

    def results(self, timeout_s: float) -> list[Report]:
        return [Report(f"r{n}", n, self.serving, self.prepared) for n in (1, 2)]


def test_a_candidate_is_shadowed_tried_promoted_and_rolled_back(tmp_path: Path) -> None:
    handle: Any = Obedient()
    where = (2, tmp_path)
    with pytest.raises(LsatError, match="nothing was published"):
        serving.shadow(handle, MODEL, *where)
    first, other = Model("short-term", 2, "single", ("b" * 64,), (1.0,)), Model("long-term", 2, "frozen")
    serving.publish(handle, [other, first], 2, *where)
    with pytest.raises(LsatError, match="no model is on trial"):
        serving.canary(handle, 0.1, *where)
    serving.shadow(handle, MODEL, *where)
    assert read_current(tmp_path) == Served(2, (other, first), MODEL)
    serving.canary(handle, 0.25, *where)
    tried = read_current(tmp_path)
    assert tried is not None and tried.share == 0.25
    users = [f"user {i}" for i in range(4000)]
    share = [tried.on_trial(u) for u in users]
    assert 0.22 < sum(share) / len(share) < 0.28
    assert share == [tried.on_trial(u) for u in users]
    more = Served(2, (other, first), MODEL, 0.5)
    assert all(more.on_trial(u) for u, yes in zip(users, share, strict=True) if yes)  # a larger share keeps its users
    serving.publish(handle, [other, first], 3, *where)  # the trial goes on over a period's end
    assert read_current(tmp_path) == Served(3, (other, first), MODEL, 0.25)
    serving.promote(handle, *where)
    assert read_current(tmp_path) == Served(3, (MODEL, other))  # who names no model meets it now
    assert Served(3, (other, first)).shadowing(Model("new", 3, "frozen")).promoted().names == ["new", "short-term"]
    serving.publish(handle, [Model("short-term", 4, "frozen")], 4, *where)
    serving.roll_back(handle, 2, *where)
    assert read_current(tmp_path) == Served(3, (other, first))
    assert handle.serving == Served(3, (other, first)).digest
    assert [s.version for s in serving.past(tmp_path)] == [2, 2, 2, 3, 3, 4, 3]
    with pytest.raises(LsatError, match=r"nothing of period 9 was served; there are periods 2, 3, 4"):
        serving.roll_back(handle, 9, *where)


class Parts:
    """A handle for bulk: each call takes the next outcome of its part."""

    def __init__(self, outcomes: dict[int, list[Any]]) -> None:
        self.outcomes = outcomes
        self.score_bulk = self

    def remote(self, samples: Any, names: Any, share: tuple[int, int]) -> Any:
        outcome = self.outcomes[share[0]].pop(0)

        class Response:
            def result(self, timeout_s: float) -> Bulk:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

        return Response()


def part(version: int, *scores: float) -> Bulk:
    return Bulk(version, {"m": np.array(scores)}, {"m": MODEL})


def test_a_part_of_a_bulk_is_done_again_and_versions_are_not_mixed() -> None:
    nan = float("nan")
    handle: Any = Parts({0: [part(1, 0.1, nan), part(2, 0.3, nan)], 1: [RayActorError(), part(2, nan, 0.4)]})
    found = serving.score_bulk(handle, None, ["m"], 2)
    assert (found.version, found.scores["m"].tolist()) == (2, [0.3, 0.4])
    assert found.digest == {"m": MODEL.digest}
    dead: Any = Parts({0: [RayActorError()] * 3})
    with pytest.raises(LsatError, match="0 of 1 parts are done"):
        serving.score_bulk(dead, None, ["m"], 1)


def test_a_bulk_has_a_time_limit_for_all_its_tries() -> None:
    """It had none: a replica that never answered was waited for as long as it liked."""
    waited = []

    class Never:
        def remote(self, samples: Any, names: Any, share: tuple[int, int]) -> Never:
            return self

        def result(self, timeout_s: float) -> Bulk:
            waited.append(timeout_s)
            raise TimeoutError("no answer")

    handle: Any = types.SimpleNamespace(score_bulk=Never())
    with pytest.raises(LsatError, match=r"0 of 1 parts are done \(TimeoutError: no answer\)"):
        serving.score_bulk(handle, None, ["m"], 1, timeout_s=0.3)
    assert waited and max(waited) <= 0.3 and len(waited) <= 3


def test_a_refusal_stops_before_the_commit(tmp_path: Path) -> None:
    write_current(tmp_path, Served(6, (FROZEN,)))
    replicas = Replicas({"prepare": [[old(1, True), old(2, error="x.safetensors: damaged")]]})
    with pytest.raises(LsatError, match=r"r2 refused: x\.safetensors: damaged"):
        publish(replicas, tmp_path)
    assert replicas.calls == ["prepare"]
    assert read_current(tmp_path) == Served(6, (FROZEN,))


def test_waiting_is_bounded_and_says_for_what(tmp_path: Path) -> None:
    replicas = Replicas({"prepare": [[old(1, True)]]})
    with pytest.raises(LsatError, match=r"prepare took longer than 0.3 s \(1 of 2 replicas are done\)"):
        publish(replicas, tmp_path, 0.3)


def test_an_older_ray_is_named(tmp_path: Path) -> None:
    with pytest.raises(LsatError, match=r"install ray>=2\.60"):
        serving.publish(object(), [MODEL], 7, 1, tmp_path)  # type: ignore[arg-type]


def test_the_file_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    assert read_current(tmp_path) is None
    write_current(tmp_path, Served(1, (FROZEN,)))
    write_current(tmp_path, NEXT)
    assert read_current(tmp_path) == NEXT
    assert [p.name for p in tmp_path.iterdir()] == ["current.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "models": []}', '{"version": 1, "models": [{}]}'])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "current.json").write_text(text)
    with pytest.raises(LsatError, match=r"current\.json: broken .*; delete it"):
        read_current(tmp_path)


def test_names_are_unique_and_carry_the_seed_where_it_differs() -> None:
    seeds = tuple(Model("short-term", 3, "frozen", seed=s) for s in (0, 1))
    assert Served(1, seeds).names == ["short-term", "short-term@1"]
    assert Served(1, seeds).select("short-term@1").seed == 1
    with pytest.raises(LsatError, match="occurs twice"):
        Served(1, (MODEL, MODEL))
    with pytest.raises(LsatError, match="no models"):
        Served(1, ())


def configured(**changes: Any) -> Experiment:
    return Experiment(serve=ServeConfig(**changes))


def test_a_taken_port_names_the_key_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serving.ray, "is_initialized", lambda: False)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(LsatError, match=rf"serve\.port: 127\.0\.0\.1:{port}.*choose another with --set serve.port"):
            serving.check(configured(port=port))
    serving.check(configured(port=port))


def test_a_run_that_goes_on_waits_until_its_killed_process_lets_go_of_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command, given at once, was refused: Ray's proxy outlives its driver by seconds."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serving.ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as held:
        config = configured(port=held.getsockname()[1])
        with pytest.raises(LsatError, match=r"serve\.port"):
            serving.check(config)
        threading.Timer(1.0, held.close).start()
        serving.check(config, again=True)


def test_an_open_address_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAT_TEST_OPEN", "secret")
    for host in ("0.0.0.0", "10.0.0.7", "example.org", "::"):
        with pytest.raises(LsatError, match=r"serve\.host: .*set serve\.token_env"):
            serving.check(configured(host=host))
    for host in ("127.0.0.1", "127.0.0.9", "localhost"):
        serving.check(configured(host=host, port=18999))
    serving.check(configured(host="0.0.0.0", port=18999, token_env="LSAT_TEST_OPEN"))


def test_a_token_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(LsatError, match=r"serve\.token_env: NO_SUCH_TOKEN is not set"):
        serving.check(configured(token_env="NO_SUCH_TOKEN"))


def test_a_catalogue_that_is_not_there_is_named_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(LsatError, match=r"serve\.catalogue: .*nowhere"):
        serving.check(configured(catalogue=str(tmp_path / "nowhere")))


def test_a_service_file_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(configured().to_yaml())
    with pytest.raises(LsatError, match=r"serve\.token_env: no token is asked for"):
        serving.application({"run_dir": str(tmp_path), "backbone": "somewhere"})


@pytest.mark.parametrize("fails", [False, True], ids=["hangs", "gives up"])
def test_an_endpoint_that_does_not_end_does_not_hold_up_a_run(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve waits for ever for a controller that hangs, and raises when an application takes longer than a minute."""

    def delete(name: str) -> None:
        if fails:
            raise TimeoutError(f"{name} is not deleted after 60s")
        held.wait()

    held = threading.Event()
    monkeypatch.setattr(serve, "delete", delete)
    monkeypatch.setattr(serving, "STOP_S", 0.2)
    assert serving.stop(Experiment()) is False
    held.set()


def test_a_start_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Serve controller that hangs tells nothing of the start, and the driver waited for ever."""
    monkeypatch.setattr(serving, "STOP_S", 0.1)
    backend = RayBackend(Experiment(serve=ServeConfig(start_s=0.1)))
    backend._say, backend._endpoint = lambda text: None, Future()
    with pytest.raises(LsatError, match="Serve's controller does not answer"):
        backend.publish([MODEL], 1)
    backend.close()
