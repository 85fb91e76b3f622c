"""The saved nano backbone is an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from lsat_ray.backbone import nano
from lsat_ray.config import Experiment, PromptConfig
from lsat_ray.data.periods import Periods
from lsat_ray.prompts.encode import Encoder
from lsat_ray.prompts.tallrec import prompt_text


def test_the_saved_tokenizer_called_on_text_gives_the_encoders_ids(
    tiny_backbone_folder: Path, tiny_periods: Periods
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_folder)
    samples = tiny_periods.rows(1).take(slice(0, 5))
    prompts = Encoder(tokenizer, PromptConfig(), tiny_periods.titles).prompt_ids(samples)
    texts = [
        prompt_text(
            tiny_periods.titles, samples.history_item[i], samples.history_label[i], int(samples.item[i]), "movie"
        )
        for i in range(len(samples))
    ]
    assert tokenizer(texts)["input_ids"] == prompts
    assert all(ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:] for ids in prompts)
    assert tokenizer.decode(prompts[0], skip_special_tokens=True) == texts[0]


def test_what_is_built_is_found_again(
    tiny_backbone_folder: Path, tiny_periods: Periods, tiny_experiment: Experiment
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in tiny_backbone_folder.iterdir()}
    again = nano.build(tiny_periods, tiny_experiment.backbone.nano, tiny_experiment.prompt, tiny_backbone_folder.parent)
    assert again == tiny_backbone_folder
    assert {p.name: p.stat().st_mtime_ns for p in again.iterdir()} == before
