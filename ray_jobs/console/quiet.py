"""What libraries print that no user can act on."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ray_jobs.console.logs import Stderr, TextFormatter

_CHATTY = ("bitsandbytes", "deepspeed", "DeepSpeed", "torch.distributed", "httpx", "filelock",
           "huggingface_hub")  # fmt: skip


def quiet_libraries() -> None:
    """Silences progress bars and notices of libraries; warnings of this project stay."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_cuda() else "cpu")
    logging.basicConfig(handlers=[Stderr(TextFormatter())])
    # Also in Ray's workers, whose root is at INFO: Ray Train logs every report there.
    logging.getLogger().setLevel(logging.WARNING)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray Train has handlers of its own; through the root's it would say everything.
    logging.getLogger("ray.train").propagate = False
    for name in ("causal_core", "ray_jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    _quiet_transformers()


def _quiet_transformers() -> None:
    """Before it is imported, which takes a second and not every command needs, and after."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # importing it sets its logger's level
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
