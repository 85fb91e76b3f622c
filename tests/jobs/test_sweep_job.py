"""What `--vary` accepts."""

import pytest

from lsat_ray.cli.front import parse
from lsat_ray.errors import LsatError


def test_settings_change_together_and_lists_get_a_name() -> None:
    key, steps = parse(["lora.targets=[[q_proj], [q_proj, v_proj]]", "lora.rank=[4, 2]"])
    assert key == "lora.targets"
    assert steps == {
        "q_proj": ("q_proj", ['lora.targets=["q_proj"]', "lora.rank=4"]),
        "q_proj.v_proj": ("q_proj.v_proj", ['lora.targets=["q_proj", "v_proj"]', "lora.rank=2"]),
    }
    assert parse(["data.synthetic.drift=[0.5, 2]"])[1]["0.5"][0] == 0.5


@pytest.mark.parametrize(
    "vary", [["lora.rank"], ["lora.rank=8"], ["lora.rank=[]"], ["lora.rank=[1"], ["a=[1, 2]", "b=[1]"]]
)
def test_anything_else_is_refused_with_the_form_that_is_expected(vary: list[str]) -> None:
    with pytest.raises(LsatError, match=r"expected section\.key=\[value|equally many"):
        parse(vary)
