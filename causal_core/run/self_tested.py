"""The self-test of a run, where the very same one has not passed on this device before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from causal_core.config import Config
from causal_core.files import cache_root
from causal_core.model import matmul
from causal_core.model.causal_model import CausalModel
from causal_core.model.device_costs import device_name
from causal_core.model.layout import packing_for
from causal_core.model.self_test import check_against_own_forward
from causal_core.pretrained.loading import loading_device
from causal_core.remembered import remembered
from causal_core.tokens.triplet import TripletTokens


def self_tested(
    model: CausalModel,
    config: Config,
    fingerprint: str,
    triplets: Sequence[TripletTokens],
    device: torch.device,
) -> None:
    """`check_against_own_forward`, which comes out the same for the same code, libraries, device,
    model, products and rows: that it passed is remembered, that it failed is not.

    Args:
        fingerprint: Of the base and of the adapter that training starts from.

    Raises:
        ModelError: as there.
    """

    def test() -> bool:
        check_against_own_forward(model, triplets, device)
        return True

    if config.model.trust_remote_code:  # code that a digest of ours knows nothing of
        test()
        return
    base = model.peft_model.get_base_model()
    of = [
        "self-test",
        device_name(device),
        torch.backends.cpu.get_cpu_capability(),  # ATEN_CPU_CAPABILITY may take less of it
        torch.get_num_threads(),
        str(loading_device(config, device)),  # where no weights are there is no test
        fingerprint,
        base.config.to_json_string(),
        config.model.model_dump(mode="json"),
        config.lora.shape(),
        matmul.in_use(),
        matmul.in_bfloat16(),
        repr(packing_for(model, device)),
        [repr(triplet) for triplet in triplets],
    ]
    remembered(cache_root(config.data.cache_dir), of, test, _passed)


def _passed(found: Any) -> None:
    if found is not True:
        raise ValueError(f"no self-test that passed: {found!r}")
