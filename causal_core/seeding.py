"""Random state as a function of (seed, step, rank): nothing to save, exact on resume."""

from __future__ import annotations

import hashlib

import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch (LoRA dropout) for one optimizer step of one worker."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
