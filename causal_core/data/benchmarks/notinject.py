"""NotInject (Li et al., 2024): harmless requests with words that attacks use, for over-defence.

There is nothing injected and no reference answer: the base's own answers can be the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causal_core.data.benchmarks.cases import Case, Dropped
from causal_core.data.benchmarks.files import Content, text_of

WANTED = "prompt, word_list"
_SYSTEM = "Answer the request."


def read(files: Sequence[Content], dropped: Dropped, _most: int | None) -> Iterator[Case]:
    """One case a prompt."""
    for file in files:
        if not file.has("prompt", "word_list"):
            raise file.wrong_layout("NotInject", WANTED)
        for record in file.records():
            prompt = text_of(record, "prompt")
            if prompt is None:
                dropped.add("without a prompt")
                continue
            yield Case(_SYSTEM, prompt, task=text_of(record, "category"), trigger_words=True)
