"""Prefix trees against separate, unpadded forwards: same loss and gradients, and how much faster.

    python -m benchmarks.tree [FILE.jsonl[#SPLIT]] [--triplets 8] [--repeats 3]

Both ways run in one process on the same triplets, interleaved. The separate way computes every
branch of every triplet by a forward of its own, as the definition of the objective says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from causal_core.config import LoraSection, LossConfig, ModelConfig
from causal_core.data.generator import generate_dataset
from causal_core.data.writer import to_table, write_triplets
from causal_core.dataset import load_dataset
from causal_core.losses import contrastive_sums, cross_entropy_sum, kl_sum
from causal_core.model import CausalModel, build_model, load_base, load_tokenizer
from causal_core.prompts import build_prompt_encoder
from causal_core.step import Denominators, loss_sums, needs_of, weighted_loss
from causal_core.triplet_trees import TripletTokens, cut_micro_batches

LOSSES = {
    "all": LossConfig(lambda_causal=0.5, lambda_spurious=0.5),
    "default": LossConfig(preset="default"),
    "reports": LossConfig(preset="reports"),
}
LOSS = LOSSES["all"]  # set by --loss


def separate(model: CausalModel, triplets: Sequence[TripletTokens], budget: int) -> float:
    """Loss and gradients by one forward per branch and answer; `budget` has no meaning here."""
    base = model.peft_model.get_base_model()
    denominators, total = Denominators.of(triplets), 0.0

    def forward(prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
        hidden = base.get_decoder()(input_ids=torch.tensor([prompt + answer[:-1]]), use_cache=False)
        states = hidden.last_hidden_state[0]
        logits = base.get_output_embeddings()(states[len(prompt) - 1 :])
        return states[: len(prompt)].mean(0), logits

    for t in triplets:
        benign, attacked = t.system + t.benign, t.system + t.injection
        z_u, clean = forward(benign, t.benign_answer)
        z_cf, _ = forward(t.system + t.counterfactual, [0])
        z_inj, safe = forward(attacked, t.injection_answer)
        z = model.projection(torch.stack([z_u, z_cf, z_inj]))[None]
        sums = {
            "task": cross_entropy_sum(clean, torch.tensor(t.benign_answer)),
            "robust": cross_entropy_sum(safe, torch.tensor(t.injection_answer)),
            **contrastive_sums(LOSS.kind, z, LOSS.temperature, LOSS.margin),
        }
        if t.shared_answer():  # the answer after U* is computed once already
            sums["invariance"] = kl_sum(clean, safe)
        loss = weighted_loss(sums, LOSS, denominators)
        loss.backward()
        total += float(loss.detach())
    return total


def tree(model: CausalModel, triplets: Sequence[TripletTokens], budget: int) -> float:
    """Loss and gradients by packed prefix trees."""
    denominators, total = Denominators.of(triplets), 0.0
    for micro in cut_micro_batches(triplets, needs_of(LOSS), budget):
        sums = loss_sums(model(micro.batch), micro.batch, LOSS)
        loss = weighted_loss(sums, LOSS, denominators)
        loss.backward()
        total += float(loss.detach())
    return total


def measured(
    way: Callable[[CausalModel, Sequence[TripletTokens], int], float],
    model: CausalModel,
    triplets: Sequence[TripletTokens],
    budget: int,
) -> tuple[float, dict[str, Tensor], float]:
    """Loss, gradients and seconds of one run of a way."""
    model.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    loss = way(model, triplets, budget)
    seconds = time.perf_counter() - begin
    parameters = model.trainable_parameters().items()
    return loss, {n: p.grad.clone() for n, p in parameters if p.grad is not None}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="triplets; generated ones by default")
    parser.add_argument("--triplets", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--loss", choices=sorted(LOSSES), default="all")
    options = parser.parse_args()
    global LOSS
    LOSS = LOSSES[options.loss]
    config = ModelConfig()
    encoder = build_prompt_encoder(load_tokenizer(config))
    with tempfile.TemporaryDirectory() as folder:
        file = options.file
        if file is None:
            file = str(Path(folder) / "generated.jsonl")
            rows = generate_dataset({"train": options.triplets}, seed=0)["train"]
            write_triplets(to_table(rows), Path(file))
        data = load_dataset(
            [file], encoder, max_length=1024, overlong="drop", cache=Path(folder) / "cache"
        )
        step = max(1, len(data) // options.triplets)
        triplets = [data.tokens(i * step) for i in range(min(options.triplets, len(data)))]
    model = build_model(load_base(config, torch.device("cpu")), LoraSection(dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # B is zero at initialisation and would hide errors in A's gradient
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.01, generator=generator)
    seconds: dict[str, list[float]] = {"separate": [], "tree": []}
    for _ in range(options.repeats + 1):
        loss_a, expected, a = measured(separate, model, triplets, options.micro_batch_tokens)
        loss_b, found, b = measured(tree, model, triplets, options.micro_batch_tokens)
        seconds["separate"].append(a)
        seconds["tree"].append(b)
    expected = {n: g for n, g in expected.items() if bool(g.abs().sum() > 0)}
    flat = [torch.cat([g[n].double().flatten() for n in expected]) for g in (found, expected)]
    worst = max(
        float((found[n].double() - e.double()).norm() / e.double().norm().clamp_min(1e-30))
        for n, e in expected.items()
    )
    batches = [m.batch for m in cut_micro_batches(triplets, needs_of(LOSS), 10**6)]
    paths, nodes = sum(b.path_tokens for b in batches), sum(b.nodes for b in batches)
    print(f"{len(triplets)} triplets of {options.file or 'generated data'}: {paths} tokens in")
    print(f"separate sequences, {nodes} tree nodes ({paths / nodes:.2f}x shared)")
    print(f"loss `{options.loss}`: relative error {abs(loss_b - loss_a) / abs(loss_a):.1e}")
    print(f"gradient: relative error {float((flat[0] - flat[1]).norm() / flat[1].norm()):.1e}")
    print(f"gradient, worst single tensor: relative error {worst:.1e}")
    times = {name: values[1:] for name, values in seconds.items()}  # the first warms up
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} - {max(values):.2f})")
    ratios = [a / b for a, b in zip(times["separate"], times["tree"], strict=True)]
    print(
        f"tree is {statistics.median(ratios):.2f}x faster ({min(ratios):.2f} - {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
