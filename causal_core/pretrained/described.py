"""What follows from the small files of a model, looked up where it was worked out before.

transformers takes seconds to import, and most starts ask it for a few numbers that files of a
kilobyte decide. A model from the hub, whose files may be others tomorrow, and one with code of its
own are asked each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from causal_core.config import ModelSection
from causal_core.files import cache_root, read_small
from causal_core.pretrained.loading import load_architecture, resolve_model
from causal_core.remembered import remembered

# What transformers reads to know an architecture (a config may name others of this form), and what
# it may read to make a tokenizer: everything but weights.
ARCHITECTURE = "config*.json"
ANYTHING = "*"
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".tflite")
)
_MOST_BYTES = 2**27  # the largest tokenizers have 30 MB; a larger file is something else

T = TypeVar("T")


def from_files(
    model: ModelSection,
    cache_dir: str | None,
    of: list[Any],
    compute: Callable[[], Any],
    read: Callable[[Any], T],
    files: str = ANYTHING,
) -> T:
    """What `compute` makes of a model's files, remembered by their content where they are local.

    Args:
        of: All else that it depends on, as of `remembered`.
        files: Which files of the model's directory it depends on: a pattern of names.

    Raises:
        ModelError: there is no such directory.
    """
    content = files_digest(model, cache_dir, files)
    if content is None:
        return read(compute())
    return remembered(cache_root(cache_dir), [*of, content], compute, read)


def architecture_key(model: ModelSection, cache_dir: str | None = None) -> str | None:
    """Stands for the architecture of a model: what is computed of it alone can be remembered by it.

    None where code of the model's own decides, of which a digest of ours knows nothing.

    Raises:
        ModelError: the architecture cannot be read.
    """
    if model.trust_remote_code:
        return None
    content = files_digest(model, cache_dir, ARCHITECTURE)
    if content is None:
        content = str(load_architecture(model, cache_dir).to_json_string())
    return content


def files_digest(
    model: ModelSection, cache_dir: str | None = None, files: str = ANYTHING
) -> str | None:
    """sha256 over names and contents of a local model's files, weights left out.

    None where they do not decide what is loaded (a hub's, or code of the model's own) or cannot
    be read.

    Raises:
        ModelError: as of `resolve_model`.
    """
    directory = Path(resolve_model(model, cache_dir))
    if model.trust_remote_code or not directory.is_dir():
        return None
    digest = hashlib.sha256()
    try:
        for path in _small_files(directory, files):
            content = hashlib.sha256(read_small(path, _MOST_BYTES)).hexdigest()
            digest.update(f"{path.relative_to(directory)}\0{content}\0".encode())
    except OSError:  # too large, a pipe, ...: whoever needs that file says so
        return None
    return digest.hexdigest()


def _small_files(directory: Path, pattern: str) -> Iterator[Path]:
    for folder in (directory, directory / _TEMPLATES):
        for path in sorted(folder.glob(pattern)):
            if not path.is_dir() and path.suffix.lower() not in _WEIGHTS:
                yield path
