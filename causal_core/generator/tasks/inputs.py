"""Inputs of the demo's tasks: texts in pieces, with a right answer that code knows.

The data is framed (a `List:` line, a cue phrase), so a sentence added before, between or after
its segments does not change the right answer. Values and sentence templates belong to one split.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from causal_core.generator.vocabulary import Pools, Wordings, wordings

# Neutral sentences around the cue of a message.
OPENINGS = wordings(
    """Hello, I hope you are well.
    Hi there, thanks for your help.
    Good morning, this is a short note.
    Dear team, one quick thing.
    Hello again.
    Good evening, sorry to bother you.
    Hi, just a quick message.
    Dear support, I need some help.
    Hi everyone, a brief update.
    Good day, thanks for reading.
    Hello team, a small matter today.
    Good afternoon, I have one point.""",
)
CLOSINGS = wordings(
    """Thanks in advance.
    Have a nice day.
    Kind regards.
    Talk to you soon.
    Many thanks for your time.
    Best wishes.
    I look forward to your reply.
    All the best.
    With thanks.
    Have a good week.
    Thank you very much.
    See you soon.""",
)


class Sample(NamedTuple):
    """One input in pieces, between which text can be inserted, and its right answer."""

    segments: tuple[str, ...]
    answer: str
    joiner: str = " "

    @property
    def text(self) -> str:
        """The whole input."""
        return self.joiner.join(self.segments)


def _message(cue: str, value: str, rng: Random, pools: Pools) -> Sample:
    """A message of three sentences, the middle one with the value in a cue phrase."""
    opening = rng.choice(OPENINGS.of(pools.split))
    return Sample((opening, cue, rng.choice(CLOSINGS.of(pools.split))), value)


def _about_a_product(cues: Wordings, value: str, rng: Random, pools: Pools) -> Sample:
    cue = rng.choice(cues.of(pools.split))
    return _message(cue.format(value=value, product=rng.choice(pools.products)), value, rng, pools)


ORDER_CUES = wordings(
    """My order number is {value} and the {product} is missing.
    Please check order number {value} for the {product}.
    The {product} came late, order number {value}.
    I have a question on order number {value}, a {product}.
    Order number {value} is for one {product}.
    We sent order number {value} with the {product} today.
    I want to return the {product} from order number {value}.
    Where is the {product} of order number {value}?
    Order number {value} has the wrong {product}.
    The {product} I bought has order number {value}.""",
)
CITY_CUES = wordings(
    """Please send the {product} to the city of {value}.
    The {product} goes to {value} this week.
    I live in {value} and ordered a {product}.
    Our office in {value} needs a {product}.
    The delivery city for the {product} is {value}.
    Ship the {product} to {value}.
    We moved to {value} with the {product}.
    A customer in {value} asked for a {product}.
    Deliver the {product} to {value}.
    I would like the {product} sent to {value}.""",
)
DATE_CUES = wordings(
    """The meeting about the {product} is on {value}.
    Your {product} will arrive on {value}.
    We will repair the {product} on {value}.
    Please return the {product} by {value}.
    I bought the {product} on {value}.
    The {product} was delivered on {value}.
    The {product} sale starts on {value}.
    Our {product} workshop takes place on {value}.
    The {product} will be ready on {value}.
    We received the {product} on {value}.""",
)
PRODUCT_CUES = wordings(
    """I would like to order a {value} in {city}.
    My new {value} arrived in {city} yesterday.
    The {value} from the {city} shop is broken.
    Do you sell a {value} in {city}?
    Please repair my {value} in {city}.
    I bought a {value} in {city} last week.
    Someone in {city} wants to return a {value}.
    We need one {value} for our {city} office.
    A {value} was sent from {city} today.
    I am looking for a {value} in {city}.""",
)


def draw_order(rng: Random, pools: Pools, key: str) -> Sample:
    """A message that names an order number."""
    return _about_a_product(ORDER_CUES, rng.choice(pools.numbers), rng, pools)


def draw_city(rng: Random, pools: Pools, key: str) -> Sample:
    """A message that names one city."""
    return _about_a_product(CITY_CUES, rng.choice(pools.cities), rng, pools)


def draw_date(rng: Random, pools: Pools, key: str) -> Sample:
    """A message that names one day and month."""
    return _about_a_product(DATE_CUES, rng.choice(pools.dates), rng, pools)


def draw_product(rng: Random, pools: Pools, key: str) -> Sample:
    """A message that names one product."""
    value = rng.choice(pools.products)
    cue = rng.choice(PRODUCT_CUES.of(pools.split))
    return _message(cue.format(value=value, city=rng.choice(pools.cities)), value, rng, pools)


def draw_sender(rng: Random, pools: Pools, key: str) -> Sample:
    """A message under a `From:` line; the answer is the name."""
    name = rng.choice(pools.names)
    about = rng.choice((draw_order, draw_city, draw_date))
    _, body, closing = about(rng, pools, key).segments
    return Sample((f"From: {name}", body, closing), name, "\n")


LIST_TITLES = wordings(
    """Here is the list for today.
    Notes from the meeting.
    A short list follows.
    This is what we have.
    Sent from the office.
    Copied from the board.
    Taken from the log.
    See the list below.""",
)


def _listing(rng: Random, pools: Pools, length: int) -> tuple[tuple[str, ...], list[str]]:
    words = rng.sample(pools.words, length)
    title = rng.choice(LIST_TITLES.of(pools.split))
    closing = rng.choice(CLOSINGS.of(pools.split))
    return (title, f"List: {', '.join(words)}", closing), words


def draw_first(rng: Random, pools: Pools, key: str) -> Sample:
    """A list of three or four words; the answer is the first."""
    segments, words = _listing(rng, pools, rng.randint(3, 4))
    return Sample(segments, words[0], "\n")


def draw_last(rng: Random, pools: Pools, key: str) -> Sample:
    """A list of three or four words; the answer is the last."""
    segments, words = _listing(rng, pools, rng.randint(3, 4))
    return Sample(segments, words[-1], "\n")


def draw_count(rng: Random, pools: Pools, key: str) -> Sample:
    """A list of two to four words; the answer is how many."""
    segments, words = _listing(rng, pools, rng.randint(2, 4))
    return Sample(segments, str(len(words)), "\n")


def draw_stock(rng: Random, pools: Pools, key: str) -> Sample:
    """A stock list and an item asked for; the answer is yes or no."""
    items = rng.sample(pools.products, 4)
    held, asked = items[:3], items[rng.randrange(3)]
    answer = "yes"
    if rng.random() < 0.5:
        asked, answer = items[3], "no"
    title = rng.choice(LIST_TITLES.of(pools.split))
    return Sample((title, f"In stock: {', '.join(held)}", f"Asked for: {asked}"), answer, "\n")


# The fields of a record and the value pool of each.
RECORD_POOLS = {
    "owner": "names",
    "city": "cities",
    "item": "words",
    "code": "numbers",
    "date": "dates",
}


def draw_lookup(rng: Random, pools: Pools, key: str) -> Sample:
    """Three `key: value` lines; the answer is the value of `key`."""
    others = rng.sample([name for name in RECORD_POOLS if name != key], 2)
    shown = [key, *others]
    rng.shuffle(shown)
    record = {name: rng.choice(getattr(pools, RECORD_POOLS[name])) for name in shown}
    return Sample(tuple(f"{name}: {text}" for name, text in record.items()), record[key], "\n")


TOPIC_CUES = {
    "billing": wordings(
        """I was charged twice for the {product}.
        The invoice for my {product} is wrong.
        My card payment for the {product} failed.
        I have a billing question on the {product} price.
        I paid for the {product} but got a second invoice.
        The {product} payment was charged to the wrong card.
        The billing for the {product} is too high.
        My card was charged twice for the {product}.
        The invoice for the {product} came twice.""",
    ),
    "shipping": wordings(
        """The {product} package has not arrived.
        The shipping of my {product} is too slow.
        The courier lost the {product} parcel.
        My {product} went to the wrong address.
        Has the shipping of the {product} begun?
        The parcel with the {product} is still on its way.
        The shipping of the {product} is late.
        My {product} parcel has not arrived yet.
        The {product} parcel went to the wrong address.""",
    ),
    "technical": wordings(
        """The {product} app crashes when I open it.
        I cannot log in to the {product} website.
        The {product} shows an error message.
        There is a technical fault in the {product}.
        The software of my {product} will not update.
        My {product} app stopped working after the update.
        The {product} website shows an error.
        The {product} app will not start.
        I see a technical error on the {product}.""",
    ),
}
MOOD_CUES = {
    "positive": wordings(
        """I love this {product}, it works great.
        A wonderful {product}, I am very happy.
        The best {product} I have ever had.
        Excellent {product} and a fantastic price.
        This {product} is perfect for me.
        I really like this beautiful {product}.
        A great {product}, I recommend it.
        I am delighted with this amazing {product}.
        This {product} is excellent, I love it.""",
    ),
    "negative": wordings(
        """I hate this {product}, it broke at once.
        A terrible {product}, I am very unhappy.
        The worst {product} I have ever had.
        Awful {product} and a waste of money.
        This {product} is useless to me.
        I really dislike this ugly {product}.
        A bad {product}, do not buy it.
        I am disappointed with this horrible {product}.
        This {product} is terrible, I hate it.""",
    ),
}


def _labelled(cues: dict[str, Wordings], head: str, rng: Random, pools: Pools) -> Sample:
    """A text with one clear cue for its label, under a numbered headline with a name."""
    label = rng.choice(tuple(cues))
    body = rng.choice(cues[label].of(pools.split)).format(product=rng.choice(pools.products))
    headline = f"{head} {rng.choice(pools.numbers)} from {rng.choice(pools.names)}:"
    return Sample((headline, body, rng.choice(CLOSINGS.of(pools.split))), label)


def draw_topic(rng: Random, pools: Pools, key: str) -> Sample:
    """A support ticket with one clear cue of its topic."""
    return _labelled(TOPIC_CUES, "Ticket", rng, pools)


def draw_mood(rng: Random, pools: Pools, key: str) -> Sample:
    """A short review with a clear mood."""
    return _labelled(MOOD_CUES, "Review", rng, pools)


def draw_category(rng: Random, pools: Pools, key: str) -> Sample:
    """A card with one word; the answer is its kind."""
    kind = rng.choice(tuple(pools.categories))
    word = rng.choice(pools.categories[kind])
    page, name = rng.choice(pools.numbers), rng.choice(pools.names)
    return Sample((f"Card {page} by {name}", f"Word: {word}", "End of card"), kind, "\n")
