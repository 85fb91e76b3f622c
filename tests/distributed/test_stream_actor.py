"""The stream's actor: rows by reference, a bounded look-ahead, and a death that costs nothing."""

from typing import Any

import pytest

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.errors import LsatError
from tests.chaos.processes import TITLES, slay

pytestmark = pytest.mark.ray


@pytest.fixture
def actor(ray_cluster: Any, tiny_periods: Periods, tmp_path: Any) -> Any:
    import ray

    from lsat_ray.distributed.stream import StreamReplayer

    held = ray.put(tiny_periods)
    actor = StreamReplayer.remote(ray.cloudpickle.dumps(held), 1, str(tmp_path))  # type: ignore[attr-defined]
    yield actor
    ray.kill(actor)


def test_the_actor_passes_samples_by_reference_and_holds_a_bounded_look_ahead(
    actor: Any, tiny_periods: Periods
) -> None:
    import ray

    ray.get(actor.arrive.remote(1))
    (ref,) = ray.get(actor.read.remote([Slice(1, "train")], 1))
    assert ray.get(ref).row.tolist() == tiny_periods.rows(1, "train").row.tolist()
    assert ray.get(actor.held.remote()) == [1, 2]
    with pytest.raises(LsatError, match="look into the future"):
        ray.get(actor.read.remote([Slice(2, "all")], 1))
    ray.get(actor.arrive.remote(2))
    assert ray.get(actor.held.remote()) == [1, 2, 3]


def test_a_killed_actor_comes_back_with_its_watermark_and_readers_go_on(actor: Any, tiny_periods: Periods) -> None:
    """It came back with watermark 0: the next read ended the run with a traceback."""
    import ray

    from lsat_ray.distributed.stream import RayReader

    for t in (1, 2):
        ray.get(actor.arrive.remote(t))
    reader = RayReader(actor)
    before = reader.read([Slice(2, "train")], 2)[0]
    slay(TITLES["stream"])
    assert reader.read([Slice(2, "train")], 2)[0].row.tolist() == before.row.tolist()
    assert reader.view(2).borders == tiny_periods.borders
    assert ray.get(actor.watermark.remote()) == 2
    ray.get(actor.arrive.remote(3))
    ray.get(actor.rewind.remote())
    with pytest.raises(LsatError, match="watermark stands at 0"):
        reader.read([Slice(1, "train")], 1)
