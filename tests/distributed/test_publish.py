"""Publish and its file, against replicas that misbehave; no cluster."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from lsat_ray.distributed import serving
from lsat_ray.distributed.scorer import Report
from lsat_ray.errors import LsatError
from lsat_ray.scoring.recommender import Model
from lsat_ray.scoring.served import FROZEN, Served, read_current, write_current

MODEL = Model("short-term", 3, "single", ("a" * 64,), (1.0,))
NEXT = Served(7, (MODEL,))


class Replicas:
    """A handle whose replicas answer from a script: method -> one list of reports, or an error, a call."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.script = script
        self.calls: list[str] = []

    def broadcast(self, method: str, *args: Any) -> Replicas:
        self.calls.append(method)
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


def test_a_taken_port_names_the_key_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any, **more: Any) -> None:
        raise ValueError

    monkeypatch.setattr(serving.ray, "get_actor", absent)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(LsatError, match=rf"serve\.port: 127\.0\.0\.1:{port}.*choose another with --set serve.port"):
            serving._claim("127.0.0.1", port)


def test_a_token_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(LsatError, match=r"serve\.token_env: NO_SUCH_TOKEN is not set"):
        serving._token("NO_SUCH_TOKEN")
