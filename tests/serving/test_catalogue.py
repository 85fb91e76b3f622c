"""A ranking without candidates orders the titles that the operator listed: the first that are new to the user."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import body_of, desk_for, hosted, make_run

from lsat_ray.client import AsyncClient, Client
from lsat_ray.config import Experiment
from lsat_ray.data.periods import Periods
from lsat_ray.errors import LsatError
from lsat_ray.scoring.prefix import Ask, Event
from lsat_ray.serving import catalogue
from lsat_ray.serving.catalogue import Catalogue
from lsat_ray.serving.endpoint import build_app


def test_the_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "titles.txt"
    path.write_text("Heat (1995)\n\n  Ronin (1998) \nHeat (1995)\n", encoding="utf-8")
    found = catalogue.read(str(path), 7)
    assert found == Catalogue(("Heat (1995)", "Ronin (1998)"), 7)
    assert found.candidates(["Heat (1995)"]) == [1]
    assert Catalogue(("a", "b", "c", "d"), 2).candidates(["b"]) == [0, 2]
    assert catalogue.read(None, 7).candidates([]) == []


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xff\xfe\x00", b"a" * 501])
def test_a_file_that_cannot_be_used_names_the_key(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "titles.txt"
    path.write_bytes(text)
    with pytest.raises(LsatError, match=r"serve\.catalogue: .*titles\.txt"):
        catalogue.read(str(path), 7)
    with pytest.raises(LsatError, match=r"serve\.catalogue: .*nowhere"):
        catalogue.read(str(tmp_path / "nowhere"), 7)


def test_the_best_of_the_shortlist_come_with_their_titles(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    served = desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, tmp_path)
    body = body_of(tiny_periods, 3)
    history = [(e["title"], e["liked"]) for e in body["history"]]
    listed = Catalogue((history[0][0], *dict.fromkeys(tiny_periods.titles)), 12)

    async def ask() -> tuple[Any, dict[str, Any], httpx.Response]:
        transport = httpx.ASGITransport(build_app(served.desk, catalogue=listed))
        plain = httpx.ASGITransport(build_app(served.desk))
        async with AsyncClient("http://desk", transport=transport) as client:
            ranking = await client.rank(history, top_n=4)
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as http:
            reply = await http.post("/v1/rank", json={"history": body["history"], "candidates": [body["target"]]})
        async with httpx.AsyncClient(transport=plain, base_url="http://desk") as http:
            refused = await http.post("/v1/rank", json={"history": body["history"]})
        return ranking, reply.json(), refused

    ranking, sent, refused = asyncio.run(ask())
    seen = {title for title, _ in history}
    shortlist = [t for t in listed.titles if t not in seen][:12]
    model = served.desk.served.models[0]
    events = tuple(Event(*event) for event in history)
    scores = served.desk.recommender.rank(model, served.bench.encoder, Ask(events, tuple(shortlist)))
    best = sorted(zip(-scores, shortlist, strict=True))[:4]
    assert [p.title for p in ranking.places] == [title for _, title in best]
    assert [p.score for p in ranking.places] == pytest.approx([-score for score, _ in best], abs=1e-6)
    assert all(listed.titles[p.index] == p.title for p in ranking.places)
    assert list(sent["results"][0]) == ["index", "relevance_score"]  # a usual rerank answer, as before
    assert refused.status_code == 422
    assert refused.json()["detail"][0] == {
        "field": "candidates", "problem": "missing, and this deployment lists nothing new", "remedy": "add candidates",
    }  # fmt: skip


def test_a_run_is_served_with_its_catalogue(
    tiny_experiment: Experiment, tiny_periods: Periods, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    run, path = make_run(tiny_experiment, tiny_backbone_folder, tmp_path), tmp_path / "titles.txt"
    desk_for(tiny_experiment, tiny_periods, tiny_backbone_folder, run)
    path.write_text("\n".join(tiny_periods.titles))
    with (
        hosted(run, f"serve.catalogue={path}", "serve.shortlist=5") as url,
        Client(url) as client,
    ):
        assert len(client.rank([]).places) == 5
