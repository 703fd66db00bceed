"""What training refuses of its data as a whole, for commands that have to know before: `plan`,
`tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from causal_core.config import Config

if TYPE_CHECKING:
    from causal_core.tokens.run_data import RunData


def refuse_shared(config: Config, data: RunData, warn: Callable[[str], None]) -> None:
    """Looks for prompts that two of a run's splits share; test sets that are not here are left out.

    Args:
        data: Training and validation, read already.
        warn: Is told what is shared where `data.overlap` only warns.

    Raises:
        UserError: there are some, as of `refuse_overlap`.
    """
    from causal_core.files import cache_root
    from causal_core.tokens.overlap import refuse_overlap
    from causal_core.tokens.run_data import encoder_source, load_test_set

    here = {
        name: places
        for name, places in config.data.test.items()
        if all(Path(place.partition("#")[0]).exists() for place in places)
    }
    source = encoder_source(config)
    tests = {name: load_test_set(config, source, places) for name, places in here.items()}
    splits = {"train": data.train, "validation": data.validation, **tests}
    refuse_overlap(splits, config.data.overlap, warn, cache_root(config.data.cache_dir))
