"""Tasks on longer texts: e-mails with headers, passages, lists of documents, dialogues."""

from __future__ import annotations

from random import Random

from causal_core.generator.tasks.inputs import CLOSINGS, OPENINGS, Sample
from causal_core.generator.tasks.task import Task, decoy_from
from causal_core.generator.vocabulary import Pools, wordings

_FILLERS = wordings(
    """The {product} in the hall works again.
    We spoke about the {product} last week.
    Nobody has seen the {product} since Monday.
    The {product} was cheaper than we thought.
    A colleague brought a {product} to the office.
    Our {product} needs a new battery.
    The visitors liked the {product} very much.
    Please keep the {product} in a dry place.
    The manual of the {product} is on the shelf.
    Someone left a {product} in the meeting room.
    There is still a {product} in the cellar.
    The {product} came with a long cable.
    Two people asked about the {product}.
    The {product} will be repaired in spring.
    A {product} like this is hard to find.
    The old {product} was given away."""
)


def _filler(rng: Random, pools: Pools) -> str:
    return rng.choice(_FILLERS.of(pools.split)).format(product=rng.choice(pools.products))


def _email(
    rng: Random, pools: Pools, body: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    sender, recipient = rng.sample(pools.names, 2)
    subject = f"{rng.choice(pools.products)} for {rng.choice(pools.cities)}"
    head = (f"From: {sender}", f"To: {recipient}", f"Subject: {subject}")
    return (*head, *body), {"sender": sender, "recipient": recipient, "subject": subject}


def draw_recipient(rng: Random, pools: Pools, key: str) -> Sample:
    """An e-mail with headers; the answer is whom it is to."""
    text, known = _email(rng, pools, (_filler(rng, pools), _filler(rng, pools)))
    return Sample(text, known["recipient"], "\n")


def draw_subject(rng: Random, pools: Pools, key: str) -> Sample:
    """An e-mail with headers; the answer is its subject line."""
    text, known = _email(rng, pools, (_filler(rng, pools), _filler(rng, pools)))
    return Sample(text, known["subject"], "\n")


_TIMES = {
    "train": range(6, 12), "validation": range(12, 15), "test_seen": range(15, 18),
    "test_novel": range(18, 23),
}  # fmt: skip
_TIME_CUES = wordings(
    """The meeting begins at {time}.
    We meet at {time} in the big room.
    Let us start at {time}.
    The call is planned for {time}.
    Be there at {time}, please.
    The session opens at {time}.
    We begin the talk at {time}.
    The doors open at {time}.
    The workshop starts at {time}."""
)


def _time(rng: Random, pools: Pools) -> str:
    return f"{rng.choice(_TIMES[pools.split])}:{rng.choice(('05', '15', '20', '30', '40', '45'))}"


def draw_time(rng: Random, pools: Pools, key: str) -> Sample:
    """An e-mail about a meeting; the answer is the time."""
    time = _time(rng, pools)
    cue = rng.choice(_TIME_CUES.of(pools.split)).format(time=time)
    opening = rng.choice(OPENINGS.of(pools.split))
    body = (opening, _filler(rng, pools), cue, _filler(rng, pools))
    return Sample((*body, rng.choice(CLOSINGS.of(pools.split))), time)


_FOUNDER_CUES = wordings(
    """The company was founded by {name} in {city}.
    {name} founded the firm in {city}.
    It was {name} who started the company in {city}.
    The founder is {name}, who came from {city}.
    {name} opened the first shop of the company in {city}.
    The firm was begun in {city} by {name}.
    {name} set the company up in {city}.
    In {city}, {name} founded the business."""
)
_COMPANY_FACTS = wordings(
    """Today it sells {product}s in many countries.
    It became known for its {product}.
    Its first good was a simple {product}.
    Most people know its {product}.
    A {product} of the house won a prize.
    The {product} is made by hand.
    It has sold one {product} a minute for years.
    Every worker gets a {product} as a gift."""
)


def _passage(rng: Random, pools: Pools, cue: str) -> Sample:
    facts = rng.sample(_COMPANY_FACTS.of(pools.split), 2)
    first, second = (f.format(product=rng.choice(pools.products)) for f in facts)
    return Sample((first, cue, second, _filler(rng, pools)), "")


def draw_founder(rng: Random, pools: Pools, key: str) -> Sample:
    """A passage about a company; the answer is who founded it."""
    name = rng.choice(pools.names)
    cue = rng.choice(_FOUNDER_CUES.of(pools.split)).format(name=name, city=rng.choice(pools.cities))
    return _passage(rng, pools, cue)._replace(answer=name)


_YEAR_CUES = wordings(
    """The old bridge was built in {year}.
    The town hall dates from {year}.
    In {year} the first train arrived.
    The library opened in {year}.
    A fire destroyed the market in {year}.
    The museum was founded in {year}.
    The harbour was closed in {year}.
    The school was renewed in {year}."""
)
_YEARS = {
    "train": range(1700, 1800), "validation": range(1800, 1840), "test_seen": range(1840, 1900),
    "test_novel": range(1900, 1960),
}  # fmt: skip


def draw_year(rng: Random, pools: Pools, key: str) -> Sample:
    """A passage with one year in it."""
    year = str(rng.choice(_YEARS[pools.split]))
    cue = rng.choice(_YEAR_CUES.of(pools.split)).format(year=year)
    return Sample((_filler(rng, pools), _filler(rng, pools), cue, _filler(rng, pools)), year)


def draw_second_sentence(rng: Random, pools: Pools, key: str) -> Sample:
    """A passage of three numbered sentences; the answer is the one with the number asked for."""
    sentences = [_filler(rng, pools) for _ in range(3)]
    number = rng.randint(1, 3)
    lines = [f"({place}) {sentence}" for place, sentence in enumerate(sentences, start=1)]
    return Sample((*lines, f"Wanted: ({number})"), sentences[number - 1], "\n")


def draw_document(rng: Random, pools: Pools, key: str) -> Sample:
    """A list of documents; the answer is the title of the one about a city."""
    cities, titles = rng.sample(pools.cities, 3), rng.sample(pools.words, 3)
    lines = [
        f'Document {place}: "{title}" is about {city}.'
        for place, (title, city) in enumerate(zip(titles, cities, strict=True), start=1)
    ]
    chosen = rng.randrange(3)
    return Sample((*lines, f"City: {cities[chosen]}"), titles[chosen], "\n")


def _dialogue(rng: Random, pools: Pools) -> tuple[list[str], list[str], list[str]]:
    names, products = rng.sample(pools.names, 3), rng.sample(pools.products, 3)
    lines = [
        f"{name}: {_TALK[place].format(product=product)}"
        for place, (name, product) in enumerate(zip(names, products, strict=True))
    ]
    return lines, names, products


_TALK = ("I have bought a {product}.", "My {product} is broken.", "We should look for a {product}.")


def draw_speaker(rng: Random, pools: Pools, key: str) -> Sample:
    """A dialogue of three; the answer is who speaks about a thing."""
    lines, names, products = _dialogue(rng, pools)
    chosen = rng.randrange(3)
    return Sample((*lines, f"Thing: {products[chosen]}"), names[chosen], "\n")


def draw_last_speaker(rng: Random, pools: Pools, key: str) -> Sample:
    """A dialogue of three; the answer is who speaks last."""
    lines, names, _ = _dialogue(rng, pools)
    return Sample(tuple(lines), names[-1], "\n")


def _subject_decoy(rng: Random, pools: Pools, key: str) -> str:
    return f"{rng.choice(pools.products)} for {rng.choice(pools.cities)}"


def _time_decoy(rng: Random, pools: Pools, key: str) -> str:
    return _time(rng, pools)


def _year_decoy(rng: Random, pools: Pools, key: str) -> str:
    return str(rng.choice(_YEARS[pools.split]))


def _sentence_decoy(rng: Random, pools: Pools, key: str) -> str:
    return _filler(rng, pools)


DOCUMENTS: tuple[Task, ...] = (
    Task(
        name="email_recipient", weight=1, noun="name", shape="email", draw=draw_recipient,
        decoy=decoy_from("names"),
        leads=wordings(
            """Whom is the e-mail to?
            Name the person that this e-mail was sent to.
            Find the recipient of the e-mail.
            Who receives this e-mail?
            Extract the name of the recipient.
            Tell us for whom the e-mail is.
            Look up the addressee of the e-mail.
            Give the name behind To in the e-mail."""
        ),
    ),
    Task(
        name="email_subject", weight=1, noun="subject", shape="email", draw=draw_subject,
        decoy=_subject_decoy, held_out=True,
        leads=wordings(
            """Copy the subject of the e-mail.
            What is the subject line of this e-mail?
            Report the subject of the e-mail below.
            Give the e-mail's subject line as it stands.
            Write down what the subject line says.
            Extract the subject of this e-mail.
            Find the subject line in the e-mail.
            State the subject of the e-mail."""
        ),
    ),
    Task(
        name="meeting_time", weight=1, noun="time", shape="appointment", draw=draw_time,
        decoy=_time_decoy,
        leads=wordings(
            """At what time does it begin?
            Find the time in the e-mail.
            Extract the starting time from the message.
            When does the meeting start?
            Report the time that the writer gives.
            Give the time of day named in the text.
            Which time does the message name?
            Read out the time of the appointment."""
        ),
    ),
    Task(
        name="founder", weight=1, noun="name", shape="passage", draw=draw_founder,
        decoy=decoy_from("names"),
        leads=wordings(
            """Who founded the company in the passage?
            Name the founder of the company.
            From the passage, find out who started the firm.
            Read the passage and give the founder's name.
            Whose company is the passage about?
            Give the name of the person who founded the firm.
            Find the founder in this passage.
            Say by whom the company was founded."""
        ),
    ),
    Task(
        name="year", weight=1, noun="year", shape="history", draw=draw_year, decoy=_year_decoy,
        leads=wordings(
            """Find the year in the passage.
            Which year does the text name?
            Extract the year from the passage.
            Give the year that is mentioned.
            In what year did it happen?
            Report the one year in this text.
            Look for the year in the text.
            State the year named in the passage."""
        ),
    ),
    Task(
        name="numbered_sentence", weight=1, noun="sentence", shape="numbered",
        draw=draw_second_sentence, decoy=_sentence_decoy,
        leads=wordings(
            """Copy the sentence with the wanted number.
            Write down the sentence that is wanted.
            Repeat the sentence whose number is given at the end.
            Quote the sentence with the number that is asked for.
            Find the wanted sentence and copy it.
            Give the wanted sentence word for word.
            Return the sentence that the last line asks for.
            Cite the sentence of the wanted number."""
        ),
    ),
    Task(
        name="document_title", weight=1, noun="title", shape="documents", draw=draw_document,
        decoy=decoy_from("words"),
        leads=wordings(
            """Give the title of the document about the city.
            Which document is about the city? Name its title.
            Find the title of the document that deals with the city.
            Name the title that belongs to the city.
            Look up the document on the city and give its title.
            Report the title of the text about the city.
            What is the title of the document on this city?
            Say which title goes with the city."""
        ),
    ),
    Task(
        name="speaker", weight=1, noun="name", shape="dialogue", draw=draw_speaker,
        decoy=decoy_from("names"),
        leads=wordings(
            """Who speaks about the thing?
            Name the person who talks about the thing.
            Find out which speaker mentions the thing.
            Give the name of the one who speaks of the thing.
            Which person in the dialogue names the thing?
            Read the dialogue and name who mentions the thing.
            Say who talks about the thing.
            Tell which speaker has the thing in mind."""
        ),
    ),
    Task(
        name="last_speaker", weight=1, noun="name", shape="dialogue", draw=draw_last_speaker,
        decoy=decoy_from("names"), held_out=True,
        leads=wordings(
            """Who speaks last?
            Name the last speaker.
            Who has the last word in the dialogue?
            Give the name of the person who speaks at the end.
            Find the last speaker of the dialogue.
            Which person ends the talk?
            Say who talks last.
            Tell us the name of the last one to speak."""
        ),
    ),
)  # fmt: skip
