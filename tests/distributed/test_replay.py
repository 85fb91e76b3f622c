"""The stream: a watermark that moves by one, and no look past it."""

from typing import Any

import pytest

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.distributed.replay import Stream, StreamReplayer
from lsat_ray.errors import LsatError


def test_periods_arrive_in_order_and_repeating_is_harmless(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods, 1)
    assert stream.arrive(1) == 1
    assert stream.arrive(1) == 1
    with pytest.raises(LsatError, match="period 3 cannot arrive before period 2"):
        stream.arrive(3)
    assert stream.arrive(2) == 2
    assert stream.arrive(1) == 1
    assert stream.watermark == 2


def test_the_stream_ends(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods, 1)
    assert [stream.arrive(t) for t in range(1, tiny_periods.count + 1)] == list(range(1, tiny_periods.count + 1))
    assert stream.arrive(tiny_periods.count + 1) is None


def test_a_read_past_the_watermark_or_past_the_readers_time_is_an_error(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods, 2)
    stream.arrive(1)
    stream.arrive(2)
    stream.check([Slice(2, "train")], as_of=2)
    with pytest.raises(LsatError, match="look into the future"):
        stream.check([Slice(3, "train")], as_of=3)
    with pytest.raises(LsatError, match="asked for train rows of period 2"):
        stream.check([Slice(2, "train")], as_of=1)


def test_a_view_holds_no_later_label_and_no_truth(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods, 1)
    stream.arrive(1)
    assert tiny_periods.samples.oracles is not None
    seen = stream.view(1).samples
    assert not seen.label[tiny_periods.borders[1] :].any()
    assert seen.probability is None and seen.oracles is None


@pytest.mark.ray
def test_the_actor_passes_rows_by_reference_and_holds_a_bounded_look_ahead(
    ray_cluster: Any, tiny_periods: Periods
) -> None:
    import ray

    actor = StreamReplayer.remote([ray.put(tiny_periods)], 1)  # type: ignore[attr-defined]
    ray.get(actor.arrive.remote(1))
    (ref,) = ray.get(actor.read.remote([Slice(1, "train")], 1))
    assert ray.get(ref).row.tolist() == tiny_periods.rows(1, "train").row.tolist()
    assert ray.get(actor.held.remote()) == [1, 2]
    with pytest.raises(LsatError, match="look into the future"):
        ray.get(actor.read.remote([Slice(2, "all")], 1))
    ray.get(actor.arrive.remote(2))
    assert ray.get(actor.held.remote()) == [1, 2, 3]
    assert ray.get(actor.watermark.remote()) == 2
    ray.kill(actor)
