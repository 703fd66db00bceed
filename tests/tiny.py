"""A tiny Llama, random triplets, and the plain path that the fast one must equal."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from causal_core.config import LoraSection, LossSection
from causal_core.loss.objective import (
    Denominators,
    micro_batch_loss,
    needs_reference,
    reference_hidden,
)
from causal_core.model.causal_model import CausalModel, build_model
from causal_core.tokens.triplet import InjectionTokens, TripletTokens
from causal_core.trees.prefix_tree import TreeBatch

VOCABULARY = 97
ALL_TERMS = {"lambda_task": 1.0, "lambda_causal": 0.5, "lambda_spurious": 0.5,
             "lambda_robust": 0.7, "lambda_invariance": 0.3, "lambda_preference": 0.6,
             "lambda_anchor": 0.4}  # fmt: skip


def tiny_base(layers: int = 2, seed: int = 0, vocabulary: int = VOCABULARY, hidden: int = 32):
    """A Llama of two layers with grouped-query attention, float32, deterministic."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=3 * hidden // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            attn_implementation="sdpa",
        )
    )
    return base.requires_grad_(False)


def tiny_model(seed: int = 0, dropout: float = 0.0, **options) -> CausalModel:
    """A CausalModel whose adapter is not at its zero initialisation, so that B matters."""
    model = build_model(
        tiny_base(seed=seed), LoraSection(rank=4, alpha=8, dropout=dropout), seed, **options
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.trainable_parameters().values():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def random_triplets(
    count: int,
    seed: int,
    systems: int = 2,
    vocabulary: int = VOCABULARY,
    injections: tuple[int, int] = (1, 1),
) -> list[TripletTokens]:
    """Triplets that share system prompts, and U inside U* in part of them.

    Args:
        injections: Of a triplet, at least and at most.
    """
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high))]

    prompts = [ids(1, 9) for _ in range(systems)]
    triplets = []
    for number in range(count):
        benign = ids(1, 12)
        answer = ids(1, 5)
        attacks = []
        for _ in range(rng.randint(*injections)):
            attack = ids(1, 8)
            prompt = rng.choice([benign + attack, attack + benign, attack])
            safe = answer if rng.random() < 0.5 else ids(1, 5)
            wanted = ids(1, 4) if rng.random() < 0.8 else []
            attacks.append(InjectionTokens(prompt, safe, ids(1, 3), wanted))
        triplets.append(
            TripletTokens(
                id=f"t{number}",
                system=rng.choice(prompts),
                benign=benign,
                counterfactual=ids(1, 12),
                benign_answer=answer,
                injections=tuple(attacks),
            )
        )
    return triplets


def plain_forward(model: CausalModel, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Last hidden states [L, H] and logits [L, V] of one unpadded sequence, the ordinary way."""
    base = model.peft_model.get_base_model()
    output = base(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0], output.logits[0]


def cross_entropy_sum(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of -log p(target)."""
    return F.cross_entropy(logits, target, reduction="sum")


def kl_sum(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum over positions of KL(p_teacher || p_student); no gradient reaches the teacher."""
    log_p = [F.log_softmax(logits, dim=-1) for logits in (student, teacher.detach())]
    return F.kl_div(*log_p, reduction="sum", log_target=True)


def plain_loss(
    model: CausalModel, triplets: list[TripletTokens], loss: LossSection
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective by separate, unpadded forwards of every branch: the definition.

    Returns:
        L, and each term with weight as its sum over its own count of the triplets.
    """
    weights = loss.weights()
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def answer_logits(prompt: list[int], answer: list[int]) -> Tensor:
        logits = plain_forward(model, prompt + answer)[1]
        return logits[len(prompt) - 1 : len(prompt) - 1 + len(answer)]

    def add(name: str, value: Tensor, count: int) -> None:
        if weights[name]:
            totals[name] = totals[name] + value if name in totals else value
            counts[name] = counts.get(name, 0) + count

    def untrained(prompt: list[int], answer: list[int]) -> Tensor:
        with torch.no_grad(), model.peft_model.disable_adapter():
            return answer_logits(prompt, answer)

    def log_p(logits: Tensor, answer: list[int]) -> Tensor:
        return -cross_entropy_sum(logits, torch.tensor(answer))

    def combined(values: list[Tensor]) -> Tensor:
        """Of a term over the injections of a triplet."""
        if not values or loss.worst_case is None:
            return torch.stack(values).sum() if values else torch.zeros(())
        tau = loss.worst_case
        scaled = torch.stack(values) / tau
        return len(values) * tau * (torch.logsumexp(scaled, 0) - math.log(len(values)))

    for t in triplets:
        benign, answer = t.system + t.benign, t.benign_answer
        clean = answer_logits(benign, answer)
        add("task", -log_p(clean, answer), len(answer))
        if loss.lambda_anchor:
            add("anchor", kl_sum(untrained(benign, answer), clean), len(answer))
        z_clean, z_other = (
            model.projection(plain_forward(model, t.system + rest)[0].mean(0))
            for rest in (t.benign, t.counterfactual)
        )
        stays = F.cosine_similarity(z_clean, z_other, dim=0)
        robust, invariant, preferred, joint = [], [], [], []
        for i in t.injections:
            attacked = t.system + i.prompt
            safe = answer_logits(attacked, i.answer)
            robust.append(-log_p(safe, i.answer))
            if answer == i.answer:
                invariant.append(kl_sum(clean, safe))
            if i.attack_answer and loss.lambda_preference:
                gained = log_p(safe, i.answer) - log_p(untrained(attacked, i.answer), i.answer)
                lost = log_p(answer_logits(attacked, i.attack_answer), i.attack_answer)
                lost = lost - log_p(untrained(attacked, i.attack_answer), i.attack_answer)
                preferred.append(-F.logsigmoid(loss.beta * (gained - lost)))
            z_attacked = model.projection(plain_forward(model, attacked)[0].mean(0))
            moves = F.cosine_similarity(z_clean, z_attacked, dim=0)
            add("spurious", moves / loss.temperature, 1)
            joint.append(
                F.softplus((moves - stays) / loss.temperature)
                if loss.contrastive == "info_nce"
                else F.relu(loss.margin - stays + moves)
            )
        add("robust", combined(robust), sum(len(i.answer) for i in t.injections))
        add("invariance", combined(invariant), len(invariant) * len(answer))
        add("preference", combined(preferred), len(preferred))
        if loss.contrastive == "causal_contrastive":
            add("causal", -stays / loss.temperature, 1)
        else:
            add("causal", torch.stack(joint).mean() if joint else 0.0 * stays, 1)
    means = {name: total / max(1, counts[name]) for name, total in totals.items()}
    return torch.stack([weights[name] * mean for name, mean in means.items()]).sum(), means


def micro_batch_gradient(
    model: CausalModel, batch: TreeBatch, loss: LossSection, triplets: list[TripletTokens]
) -> float:
    """Backward of one micro-batch of a global batch `triplets`; its share of the loss."""
    denominators = Denominators.of(triplets)
    if next(model.projection.parameters()).dtype is torch.float64:
        batch = replace(batch, pool_weights=exact_pool_weights(batch))
    reference = reference_hidden(model, batch) if needs_reference(loss) else None
    value, _ = micro_batch_loss(model, model(batch), batch, loss, denominators, reference)
    value.backward()
    return float(value.detach())


def exact_pool_weights(batch: TreeBatch) -> Tensor:
    """The batch's 1 / length in float64: its own, of which these are checked to be the rounded
    ones, would leave a float64 model with an error of float32."""
    pooled = (batch.pool_weights != 0).double()
    exact = pooled / pooled.sum(-1, keepdim=True).clamp(min=1.0)
    assert torch.equal(exact.float(), batch.pool_weights)
    return exact


def norms_in_float64(patch) -> None:
    """The library's Llama norms in the type of their input; its own round to float32 within."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(norm, x):
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)

    patch.setattr(LlamaRMSNorm, "forward", forward)


def gradients(model: CausalModel) -> dict[str, Tensor]:
    """A copy of every trainable parameter's gradient (zeros where there is none)."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.trainable_parameters().items()
    }


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest over tensors of ||found - expected|| / ||expected|| (norms in float64)."""
    errors = [0.0]
    for name, reference in expected.items():
        scale = float(reference.double().norm())
        difference = float((found[name].double() - reference.double()).norm())
        if scale < 1e-7:  # a gradient that is zero by construction must stay so
            errors.append(0.0 if difference < 1e-7 else difference)
        else:
            errors.append(difference / scale)
    return float(np.max(errors))  # NaN where there is one, which Python's max would pass over
