"""Gated meta-LoRAs: the batch against a loop over its samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from workbench import Workbench, make_workbench, randomise

from lsat_ray.adapters.personal import Gate, personal
from lsat_ray.backbone.gated import mix as mixed
from lsat_ray.config import GateConfig, LoraSettings
from lsat_ray.errors import LsatError
from lsat_ray.prompts.batch import Encoded, apart, collate

MIXES = ["products", "factors"]
WIDTH = 5


def profiled(encoded: Encoded) -> Encoded:
    """Return the encoding with random vectors."""
    return apart(encoded, np.random.default_rng(0).normal(size=(len(encoded), WIDTH)).astype(np.float32))


def factors(mix: str, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one sample's own (A, B) as RecLoRA writes them, from members' [N, r, in], [N, out, r] and weights [N]."""
    if mix == "factors":
        return torch.einsum("n,nri->ri", weight, a), torch.einsum("n,nor->or", weight, b)
    return a.flatten(0, 1), torch.cat([w * one for w, one in zip(weight, b, strict=True)], dim=1)


@pytest.mark.parametrize("mix", MIXES)
def test_one_layer_has_the_values_and_gradients_of_a_loop_over_samples(mix: str) -> None:
    torch.manual_seed(0)
    samples, tokens, n, r, width, out = 4, 7, 3, 2, 6, 5
    gate = Gate(2, WIDTH, GateConfig(members=n, mix=mix, hidden=8, temperature=2.0)).double()  # type: ignore[arg-type]
    gate.reset(torch.Generator().manual_seed(1))
    profile, x = torch.randn(samples, WIDTH).double(), torch.randn(samples * tokens, width).double()
    a, b = (torch.randn(*s).double().requires_grad_() for s in ((n, r, width), (n, out, r)))
    goal = torch.randn(samples * tokens, out).double()

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        wanted = [a, b, *gate.parameters()]
        return list(torch.autograd.grad(((y - goal) ** 2).sum(), wanted, allow_unused=False))

    gate.weights = gate(profile)
    low = functional.linear(x, a.flatten(0, 1))
    batch = functional.linear(mixed(low, gate.of(1), mix == "factors"), torch.cat(list(b), dim=1))
    weight = gate(profile)
    loop = []
    for s in range(samples):
        own_a, own_b = factors(mix, a, b, weight[s, 1])
        loop.append(x[s * tokens : (s + 1) * tokens] @ (own_b @ own_a).T)
    torch.testing.assert_close(batch, torch.cat(loop))
    for one, other in zip(gradients(batch), gradients(torch.cat(loop)), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "o_proj", "down_proj")])
def test_the_model_has_the_gradients_of_one_plain_lora_per_sample(
    bench: Workbench, tiny_backbone_folder: object, mix: str, targets: tuple[str, ...]
) -> None:
    """Every sample wears its own merged LoRA on the plain path; its gradients flow back by hand through the merge."""
    lora = LoraSettings(rank=2, alpha=4, targets=targets)
    n = 3
    gated = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, lora=lora)  # type: ignore[arg-type]
    rank = lora.rank * n if mix == "products" else lora.rank
    wide = lora.model_copy(update={"rank": rank, "alpha": 2.0 * rank})
    plain = make_workbench(bench.experiment, bench.periods, tiny_backbone_folder, lora=wide)  # type: ignore[arg-type]
    encoded = profiled(gated.train)
    batch = collate(encoded, np.array([3, 0, 11, 7]))
    config = GateConfig(members=n, mix=mix, hidden=8)  # type: ignore[arg-type]
    with personal(gated.model, config, WIDTH):
        randomise(gated.model)
        live = gated.model.trainable()
        logits = gated.model(batch)
        functional.cross_entropy(logits, batch.label.long(), reduction="sum").backward()
        found = {k: v.grad.clone() for k, v in live.items() if v.grad is not None}
        assert found.keys() == live.keys()
        gate, values = gated.model.gate, {k: v.detach().clone().requires_grad_() for k, v in live.items()}
        inside = {k.removeprefix("gate."): v for k, v in values.items() if k.startswith("gate.")}
        assert batch.profile is not None
        weight = torch.func.functional_call(gate, inside, (batch.profile,))
    modules = sorted(k.removesuffix(".lora_A.weight") for k in live if k.endswith(".lora_A.weight"))
    plain.model.eval()
    for s in range(len(batch.tokens)):
        own: dict[str, torch.Tensor] = {}
        for number, module in enumerate(modules):
            a, b = values[f"{module}.lora_A.weight"], values[f"{module}.lora_B.weight"]
            parts = a.view(n, lora.rank, -1), b.view(len(b), n, lora.rank).transpose(0, 1)
            own[f"{module}.lora_A.weight"], own[f"{module}.lora_B.weight"] = factors(mix, *parts, weight[s, number])
        slot = plain.model.slot_parameters()
        with torch.no_grad():
            for name, parameter in slot.items():
                parameter.copy_(own[name])
                parameter.grad = None
        one = collate(encoded, batch.sequence[s : s + 1].numpy())
        logit = plain.model(one)
        torch.testing.assert_close(logit, logits[s : s + 1].detach(), atol=2e-5, rtol=1e-4)
        functional.cross_entropy(logit, one.label.long(), reduction="sum").backward()
        torch.autograd.backward([own[k] for k in slot], [p.grad for p in slot.values()], retain_graph=True)
    for name, grad in found.items():
        torch.testing.assert_close(grad, values[name].grad, atol=2e-5, rtol=2e-3, msg=name)


def test_a_prompt_with_its_prefix_of_its_own_scores_the_same(bench: Workbench) -> None:
    randomise(bench.model)
    bench.model.eval()
    index = np.arange(6)
    with torch.no_grad():
        shared = bench.model(collate(bench.validation, index))
        own = bench.model(collate(profiled(bench.validation), index))
    torch.testing.assert_close(shared, own, atol=2e-5, rtol=1e-4)


def test_the_model_is_as_before_when_the_block_ends(bench: Workbench) -> None:
    randomise(bench.model)
    before, names = bench.model.snapshot(), set(bench.model.state_dict())
    with personal(bench.model, GateConfig(), WIDTH):
        bench.model.reset(3)
        worn = bench.model.snapshot()
        assert (worn.rank, worn.scale) == (4 * before.rank, before.scale)
        assert worn.modules() == before.modules()
        assert "gate.first" in worn.state
    after = bench.model.snapshot()
    assert all(torch.equal(v, after.state[k]) for k, v in before.state.items())
    assert set(bench.model.state_dict()) == names


def test_samples_without_vectors_and_shared_prompts_are_refused(bench: Workbench) -> None:
    with personal(bench.model, GateConfig(), WIDTH), pytest.raises(LsatError, match=r"layout: exact"):
        bench.model(collate(bench.train, np.arange(2)))
    stream = bench.encoder.with_titles(bench.periods.titles)
    stream.config = stream.config.model_copy(update={"layout": "stream"})
    with pytest.raises(LsatError, match=r"prompt.layout"):
        profiled(stream(bench.periods.rows(1, "train")))
