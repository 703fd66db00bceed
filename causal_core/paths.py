"""Where caches live on this machine."""

import os
from pathlib import Path


def cache_root(configured: str | None = None) -> Path:
    """The cache directory: the config's, else $CAUSAL_RAY_CACHE, else ~/.cache/causal-ray."""
    chosen = configured or os.environ.get("CAUSAL_RAY_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "causal-ray"
