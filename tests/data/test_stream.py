"""The stream: a watermark that moves by one, and no look past it."""

import pytest

from lsat_ray.data.periods import Periods, Slice
from lsat_ray.data.stream import Stream
from lsat_ray.errors import LsatError


def test_periods_arrive_in_order_and_repeating_is_harmless(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods)
    stream.arrive(1)
    stream.arrive(1)
    with pytest.raises(LsatError, match="period 3 cannot arrive before period 2"):
        stream.arrive(3)
    stream.arrive(2)
    stream.arrive(1)
    assert stream.watermark == 2


def test_the_stream_ends(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods)
    for t in range(1, tiny_periods.count + 1):
        stream.arrive(t)
    with pytest.raises(LsatError, match=f"the stream ends with {tiny_periods.count}"):
        stream.arrive(tiny_periods.count + 1)


def test_a_read_past_the_watermark_or_past_the_readers_time_is_an_error(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods)
    stream.arrive(1)
    stream.arrive(2)
    assert stream.read([Slice(2, "train")], as_of=2)[0].row.tolist() == tiny_periods.rows(2, "train").row.tolist()
    with pytest.raises(LsatError, match="look into the future"):
        stream.read([Slice(3, "train")], as_of=3)
    with pytest.raises(LsatError, match="asked for train samples of period 2"):
        stream.read([Slice(2, "train")], as_of=1)


def test_a_view_holds_no_later_label_and_no_truth(tiny_periods: Periods) -> None:
    stream = Stream(tiny_periods)
    stream.arrive(1)
    assert tiny_periods.samples.oracles is not None
    seen = stream.view(1).samples
    assert not seen.label[tiny_periods.borders[1] :].any()
    assert seen.probability is None and seen.oracles is None
