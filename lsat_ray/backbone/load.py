"""Load any Hugging Face causal LM as a frozen backbone."""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsat_ray.backbone.precision import native_bfloat16
from lsat_ray.backbone.sharding import Sharding, Whole
from lsat_ray.config import BackboneConfig, Experiment
from lsat_ray.errors import LsatError
from lsat_ray.files import sha256_of
from lsat_ray.prompts.answer import AnswerTokens, find_answer_tokens
from lsat_ray.prompts.tallrec import preamble, target_text

FILES = ("*.json", "*.safetensors", "*.model", "tokenizer*", "vocab.*", "merges.txt")
"""Files of a hub model that are downloaded."""
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")
"""One of them makes a tokenizer."""


@dataclass
class Backbone:
    """A frozen causal LM, its tokenizer, and the two rows of its output embedding that stand for No and Yes."""

    model: Any
    """transformers causal LM."""
    tokenizer: Any
    answers: AnswerTokens
    head: torch.Tensor
    """float32 [2, H], rows of the output embedding for No and Yes."""
    bias: torch.Tensor
    """float32 [2]."""
    fingerprint: str
    """SHA-256 over weights, configs, tokenizer and the dtype of the weights."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.device


def pick_device(name: str) -> torch.device:
    """Return the device that `auto` stands for, or the named one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def dtype_of(config: BackboneConfig) -> str:
    """Return the type of the weights; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if native_bfloat16(pick_device(config.device))[0] else "float32"


def settle(config: Experiment) -> Experiment:
    """Return the experiment with the type of its weights named, so that every worker and every resume takes the same.

    Raises:
        LsatError: when the weights will lie on GPUs that are not in this machine, so that it cannot ask them.
    """
    backbone = config.backbone
    if backbone.dtype != "auto":
        return config
    elsewhere = (config.engine.gpus > 0 and backbone.device != "cpu") or backbone.device.startswith("cuda")
    if elsewhere and not torch.cuda.is_available():
        raise LsatError(
            "backbone.dtype: auto asks the GPU, and there is none in this machine; "
            "--set backbone.dtype=bfloat16 (compute capability 8.0 and later) or float32"
        )
    return config.model_copy(update={"backbone": backbone.model_copy(update={"dtype": dtype_of(backbone)})})


def locate(config: BackboneConfig) -> Path:
    """Return the folder of the weights: the path itself, or the hub's snapshot of it, checked by `check_folder`.

    Raises:
        LsatError: when there is no model at that place, or a part of it is missing.
    """
    folder = Path(config.path).expanduser()
    if folder.exists():
        return check_folder(folder)
    if config.path.count("/") != 1 or config.path.startswith((".", "/", "~")):
        raise LsatError(f"backbone.path: {config.path} does not exist; give `nano`, a model folder or a hub name")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(config.path, revision=config.revision, allow_patterns=[*FILES])
    except Exception as error:
        raise LsatError(
            f"backbone.path: {config.path} is neither a folder nor reachable on the hub "
            f"({type(error).__name__}); check the name, log in, or download it and give its folder"
        ) from error
    return check_folder(Path(found))


def on_this_machine(config: BackboneConfig, folder: Path) -> Path:
    """Return the weights' folder on this machine: the driver's, or where that is not there the same commit of the hub.

    Raises:
        LsatError: when the driver's folder is of no hub model and this machine does not see it.
    """
    if folder.exists():
        return folder
    name, commit = base_name(config, folder)
    if Path(name).is_absolute():
        raise LsatError(
            f"backbone.path: {socket.gethostname()} does not see {folder}; runs and models must lie on storage that "
            "every node sees under the same path"
        )
    return locate(config.model_copy(update={"revision": commit}))


def check_folder(folder: Path) -> Path:
    """Return the folder when it holds a config, weights and a tokenizer; nothing is loaded.

    Raises:
        LsatError: naming what is missing.
    """
    what = f"backbone.path: {folder} is not a model that can be loaded"
    if not (folder / "config.json").is_file():
        raise LsatError(f"{what}: it has no config.json; give a Hugging Face folder")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            needed = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LsatError(f"{what}: {index.name} is broken ({error}); download it again") from error
        if gone := sorted(name for name in needed if not (folder / name).is_file()):
            raise LsatError(
                f"{what}: {len(gone)} of {len(needed)} weight files are missing ({gone[0]}); download it again"
            )
    elif not any(folder.glob("*.safetensors")):
        raise LsatError(
            f"{what}: it has no weights (*.safetensors); download them, or convert pytorch_model.bin with "
            "transformers' save_pretrained"
        )
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        raise LsatError(f"{what}: it has no tokenizer ({', '.join(VOCABULARIES)}); put the model's own tokenizer there")
    return folder


def base_name(config: BackboneConfig, folder: Path) -> tuple[str, str | None]:
    """Return under which name, and at which commit, `from_pretrained` finds the backbone again.

    Args:
        config: `path` is a folder, a hub name, or `nano`.
        folder: where the weights lie.

    Returns:
        The hub name and the commit of its snapshot; else the absolute folder and None.
    """
    if config.path == "nano" or Path(config.path).expanduser().exists():
        return str(folder.resolve()), None
    snapshot = folder.name if folder.parent.name == "snapshots" else config.revision
    return config.path, snapshot


def fingerprint(folder: Path, config: BackboneConfig) -> str:
    """Return the SHA-256 over the folder's weights, configs and tokenizer, and the dtype they are loaded in."""
    digest = hashlib.sha256(f"{dtype_of(config)} {config.quantization}".encode())
    names = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model"))
    for path in names:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def outline(folder: Path, config: BackboneConfig) -> Any:
    """Return the causal LM of a folder without its weights (on torch's meta device); only its config is read.

    Raises:
        LsatError: when the folder is no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        shape = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype_of(config)))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LsatError(f"backbone.path: {folder} is not a causal LM: {reason}") from error


def load(config: BackboneConfig, folder: Path | None = None, sharding: Sharding | None = None) -> Backbone:
    """Load the backbone, frozen and in evaluation mode.

    Args:
        config: dtype, device, attention and quantisation.
        folder: the weights; located from the config when None.
        sharding: how they are split over workers; not at all when None.

    Raises:
        LsatError: when the folder is no causal LM, or its tokenizer has no single answer tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, sharding = folder or locate(config), sharding or Whole()
    device, dtype = pick_device(config.device), getattr(torch, dtype_of(config))
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention}
    if config.quantization:
        options |= {"quantization_config": _quantization(config), "device_map": {"": device}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with sharding.loading(dtype):
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
            )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LsatError(f"backbone.path: {folder} does not load as a causal LM: {reason}") from error
    if not config.quantization:
        model.to(device)
    return wrap(model, tokenizer, fingerprint(folder, config), sharding)


def wrap(model: Any, tokenizer: Any, name: str, sharding: Sharding | None = None) -> Backbone:
    """Freeze a causal LM and find its answer rows; check that two rows of the head give the same logits as all rows.

    Raises:
        LsatError: when the model changes its logits after the head, or has no single answer tokens.
    """
    sharding = sharding or Whole()
    model.eval()
    model.requires_grad_(False)
    model.config.use_cache = False
    opening = preamble("item") + '"a"\nUser Unpreference: \n' + target_text("b", "item")
    answers = find_answer_tokens(tokenizer, opening)
    output = model.get_output_embeddings()
    rows = torch.tensor([answers.no, answers.yes], device=output.weight.device)
    with sharding.gathered(output.parameters()):
        head = output.weight.detach()[rows].float().clone()
        bias = torch.zeros(2, device=head.device) if output.bias is None else output.bias.detach()[rows].float().clone()
    ids = torch.tensor([tokenizer.encode(opening, add_special_tokens=False)[-16:]], device=head.device)
    with torch.no_grad(), sharding.running(model):
        found = model(input_ids=ids, logits_to_keep=1, output_hidden_states=True)
        whole, hidden = found.logits[0, -1, rows].float(), found.hidden_states[-1][0, -1].float()
    short = hidden @ head.T + bias
    if not torch.allclose(whole, short, rtol=2e-2, atol=2e-2 * float(whole.abs().max() + 1)):
        raise LsatError(
            f"backbone: {type(model).__name__} changes its logits after the head (soft-capping or scaling), which "
            "two-row scoring leaves out; use another backbone"
        )
    return Backbone(model, tokenizer, answers, head, bias, name)


def _quantization(config: BackboneConfig) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise LsatError("backbone.quantization: bitsandbytes is not installed; pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
