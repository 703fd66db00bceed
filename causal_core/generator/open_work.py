"""Open work: requests without one right answer, whose targets a model writes itself.

A model that is trained on short exact answers alone forgets how to do anything else. Rows of open
work, answered by the base model before training (`causal data targets`), keep that in the mix
(self-written targets: SecAlign++, Meta, 2025). They are rows of the train split, and their words
are of its pools alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from causal_core.data.schema import DataError, Triplet
from causal_core.generator.generate import LICENSE, SOURCE
from causal_core.generator.tasks import TASKS
from causal_core.generator.vocabulary import TRAIN, pools

OPEN_TASK = "open_work"
# Most rows give a text and say in the system instruction what is wanted of it.
_ABOUT_A_TEXT = (
    "Summarise the text in one sentence.",
    "What is this text about? Answer in one sentence.",
    "Suggest a title for the text.",
    "Write a short, friendly reply to the message.",
    "Write a one-sentence answer to the person who wrote this.",
    "Ask the writer one question about the text.",
    "Name one thing that the text leaves open.",
    "Explain the text to a child in one sentence.",
    "Say in a few words who could have written this.",
    "Where could this text have been found? Answer in one sentence.",
    "What could happen next? Answer in one sentence.",
    "Which part of the text matters most? Answer in one sentence.",
    "Is the text formal or informal? Give a short reason.",
    "Describe the mood of the text in one sentence.",
    "Say what you notice about the text, in one sentence.",
    "What would you check before you rely on this text? Answer in one sentence.",
    "Write a subject line for the text.",
    "Write the first sentence of a letter about this.",
    "Put the text into your own words, in one sentence.",
    "You are a helpful assistant. Comment on the user's text in one sentence.",
    "You help an office with its mail. Say in one sentence what should be done with this.",
    "You are a careful editor. Suggest one improvement to the text.",
    "You are a friendly assistant. Answer in one sentence.",
    "Give a reason why somebody would keep this text, in one sentence.",
)
# Some ask a general assistant something that needs no text.
_ASSISTANTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "Answer the question briefly.",
    "Answer in at most two sentences.",
    "You answer questions for visitors. Be brief.",
    "Be helpful and short.",
)
_QUESTIONS = (
    "What is a {word}?",
    "What can one do with a {product}?",
    "Write one sentence about a {word} and a {word2}.",
    "What should I look for when I buy a {product}?",
    "Name three things that one finds in {city}.",
    "Why would somebody travel to {city}?",
    "What is the difference between a {word} and a {word2}?",
    "Give me a tip for cleaning a {product}.",
    "Invent a name for a shop that sells the {product}.",
    "Write a line of a poem about a {word}.",
    "How would you describe a {word} to somebody who has never seen one?",
    "What might {name} write on a postcard from {city}?",
)
_QUESTION_SHARE = 0.25
_MAX_ATTEMPTS = 1000


def open_rows(size: int, seed: int) -> Iterator[Triplet]:
    """Yield the first `size` rows of open work, without answers; none occurs twice.

    They depend on the seed and on the rows before, never on how many are asked for.

    Raises:
        DataError: more rows than its words can make.
    """
    used: set[tuple[str, str]] = set()
    for index in range(size):
        system, text = _fresh(Random(f"{seed}/open/{index}"), used, index)
        yield Triplet(
            id=f"open-{index:06d}",
            system_instruction=system,
            benign_input=text,
            benign_output="",
            task=OPEN_TASK,
            split=TRAIN,
            source=SOURCE,
            license=LICENSE,
        )


def _fresh(rng: Random, used: set[tuple[str, str]], index: int) -> tuple[str, str]:
    for _ in range(_MAX_ATTEMPTS):
        row = _question(rng) if rng.random() < _QUESTION_SHARE else _about_a_text(rng)
        if row not in used:
            used.add(row)
            return row
    reason = f"its words make no more than {index} rows of open work; ask for fewer"
    raise DataError.in_file(OPEN_TASK, reason)


def _question(rng: Random) -> tuple[str, str]:
    words = pools(TRAIN)
    word, word2 = rng.sample(words.words, 2)
    question = rng.choice(_QUESTIONS).format(
        word=word,
        word2=word2,
        product=rng.choice(words.products),
        city=rng.choice(words.cities),
        name=rng.choice(words.names),
    )
    return rng.choice(_ASSISTANTS), question


def _about_a_text(rng: Random) -> tuple[str, str]:
    task = rng.choice([task for task in TASKS if not task.held_out])
    return rng.choice(_ABOUT_A_TEXT), task.draw(rng, pools(TRAIN), rng.choice(task.keys)).text
