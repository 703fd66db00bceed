"""Short tasks: one value of a message, a list or a record, or one of a few labels.

Every one is small enough for a 135M model: the answer is copied from the input or is one of a few
labels that the system instruction names.
"""

from __future__ import annotations

from random import Random

from causal_core.generator.tasks import inputs
from causal_core.generator.tasks.inputs import RECORD_POOLS
from causal_core.generator.tasks.task import Task, decoy_from
from causal_core.generator.vocabulary import Pools, wordings


def _lookup_decoy(rng: Random, pools: Pools, key: str) -> str:
    values: tuple[str, ...] = getattr(pools, RECORD_POOLS[key])
    return rng.choice(values)


SHORT: tuple[Task, ...] = (
    Task(
        name="order_number",
        weight=2,
        noun="order number",
        leads=wordings(
            """Find the order number in the message.
            Extract the order number from the e-mail.
            Which order number does the customer mention?
            Look for the order number in this text.
            Your job is to read out the order number.
            State the order number that appears in the message.
            Read the e-mail and report its order number.
            What is the order number in the text?
            Identify the order number in this e-mail.
            Pick the order number out of the message.
            Tell us the order number named in the text.
            Locate the order number in the message below."""
        ),
        draw=inputs.draw_order,
        decoy=decoy_from("numbers"),
    ),
    Task(
        name="sender",
        weight=2,
        noun="name",
        leads=wordings(
            """Find the name of the sender in the message.
            Extract the sender's name from the e-mail.
            Who sent this message?
            Look for the name of the person who wrote this.
            Your job is to name the sender of the e-mail.
            State the name of the sender of this message.
            Read the e-mail and report who it is from.
            What is the name of the sender of the text?
            Identify the sender of this e-mail by name.
            Pick out the name of the message's sender.
            Tell us who the message is from.
            Locate the sender's name in the message below."""
        ),
        draw=inputs.draw_sender,
        decoy=decoy_from("names"),
    ),
    Task(
        name="city",
        weight=2,
        noun="city",
        leads=wordings(
            """Find the city in the message.
            Extract the city from the e-mail.
            Which city does the customer mention?
            Look for the name of a city in this text.
            Your job is to read out the city.
            State the city that appears in the message.
            Read the e-mail and report its city.
            What is the city in the text?
            Identify the city in this e-mail.
            Pick the city out of the message.
            Tell us the city named in the text.
            Locate the city in the message below."""
        ),
        draw=inputs.draw_city,
        decoy=decoy_from("cities"),
    ),
    Task(
        name="product",
        weight=2,
        noun="product",
        leads=wordings(
            """Find the product in the message.
            Extract the product from the e-mail.
            Which product does the customer write about?
            Look for the name of a product in this text.
            Your job is to read out the product.
            State the product that appears in the message.
            Read the e-mail and report its product.
            What is the product in the text?
            Identify the product in this e-mail.
            Pick the product out of the message.
            Tell us the product named in the text.
            Locate the product in the message below."""
        ),
        draw=inputs.draw_product,
        decoy=decoy_from("products"),
    ),
    Task(
        name="date",
        weight=2,
        noun="date",
        leads=wordings(
            """Find the date in the message.
            Extract the date from the e-mail.
            Which date does the writer mention?
            Look for the day and month in this text.
            Your job is to read out the date.
            State the date that appears in the message.
            Read the e-mail and report its date.
            What is the date in the text?
            Identify the date in this e-mail.
            Pick the date out of the message.
            Tell us the date named in the text.
            Locate the date in the message below."""
        ),
        draw=inputs.draw_date,
        decoy=decoy_from("dates"),
    ),
    Task(
        name="first_word",
        weight=2,
        shape="list",
        noun="word",
        leads=wordings(
            """Find the first word of the list.
            Extract the first word from the list.
            Which word comes first in the list?
            Look at the list and take its first word.
            Your job is to read out the first word of the list.
            State the word that stands first in the list.
            Read the list and report its first word.
            What is the first word in the list?
            Identify the first word of this list.
            Pick the first word from the given list.
            Tell us the first word that the list has.
            Locate the first word in the list below."""
        ),
        draw=inputs.draw_first,
        decoy=decoy_from("words"),
    ),
    Task(
        name="last_word",
        weight=1,
        shape="list",
        noun="word",
        leads=wordings(
            """Find the last word of the list.
            Extract the last word from the list.
            Which word comes last in the list?
            Look at the list and take its last word.
            Your job is to read out the last word of the list.
            State the word that stands last in the list.
            Read the list and report its last word.
            What is the last word in the list?
            Identify the last word of this list.
            Pick the last word from the given list.
            Tell us the last word that the list has.
            Locate the last word in the list below."""
        ),
        draw=inputs.draw_last,
        decoy=decoy_from("words"),
    ),
    Task(
        name="lookup",
        weight=2,
        shape="record",
        noun="value",
        leads=wordings(
            """Find the {key} in the record.
            Extract the {key} from the table.
            Which {key} does the record show?
            Look for the line with the {key} in this record.
            Your job is to read out the {key} of the record.
            State the {key} that appears in the table.
            Read the record and report its {key}.
            What is the {key} in the record?
            Identify the {key} in this table.
            Pick the {key} out of the record.
            Tell us the {key} named in the table.
            Locate the {key} in the record below."""
        ),
        draw=inputs.draw_lookup,
        decoy=_lookup_decoy,
        keys=tuple(RECORD_POOLS),
    ),
    Task(
        name="ticket_topic",
        weight=1,
        shape="ticket",
        noun="topic",
        leads=wordings(
            """Sort the ticket into billing, shipping or technical.
            Classify the ticket: billing, shipping or technical.
            Is the ticket about billing, shipping or technical matters?
            Choose the topic of the ticket: billing, shipping or technical.
            Your job is to label tickets as billing, shipping or technical.
            State whether the ticket is billing, shipping or technical.
            Read the ticket and name its topic: billing, shipping or technical.
            Which topic fits the ticket: billing, shipping or technical?
            Label this ticket as billing, shipping or technical.
            Pick the topic of this ticket: billing, shipping or technical.
            Assign the ticket to billing, shipping or technical.
            Decide if the ticket is billing, shipping or technical."""
        ),
        draw=inputs.draw_topic,
        decoy=decoy_from("fake_topics"),
    ),
    Task(
        name="in_stock",
        weight=1,
        shape="list",
        noun="answer",
        leads=wordings(
            """Is the item asked for in stock? Say yes or no.
            Check whether the asked item is in stock, yes or no.
            Say yes if the asked item is in stock, otherwise no.
            Does the stock list have the item asked for, yes or no?
            Look up the asked item in the stock list: yes or no.
            Decide yes or no: the item asked for is in stock.
            Compare the asked item with the stock and say yes or no.
            Yes or no: is the item asked for among the stock?
            Tell if the asked item is in the stock list, yes or no.
            Is the asked item listed in stock, yes or no?
            State yes or no: the stock includes the item asked for.
            Report whether the stock holds the asked item, yes or no."""
        ),
        draw=inputs.draw_stock,
        decoy=decoy_from("fake_verdicts"),
    ),
    Task(
        name="sentiment",
        weight=2,
        shape="review",
        noun="sentiment",
        leads=wordings(
            """Is the review positive or negative?
            Classify the review as positive or negative.
            Decide whether the review is positive or negative.
            Choose the sentiment of the review: positive or negative.
            Your job is to label reviews as positive or negative.
            State whether the review sounds positive or negative.
            Read the review and name its sentiment: positive or negative.
            Which sentiment fits the review: positive or negative?
            Label this review as positive or negative.
            Pick the sentiment of this review: positive or negative.
            Judge if the review is positive or negative.
            Sort the review into positive or negative."""
        ),
        draw=inputs.draw_mood,
        decoy=decoy_from("fake_moods"),
    ),
    Task(
        name="count",
        weight=1,
        shape="list",
        noun="number",
        leads=wordings(
            """Count the words in the list.
            How many words does the list have?
            Find the number of words in the list.
            Look at the list and count its words.
            Your job is to count the words of the list.
            State how many words stand in the list.
            Read the list and report how many words it has.
            What is the number of words in the list?
            Work out how many words the list has.
            Tell us the number of words in this list.
            Give the number of words that the list holds.
            Report how many words the list below contains."""
        ),
        draw=inputs.draw_count,
        decoy=decoy_from("fake_counts"),
    ),
    Task(
        name="category",
        weight=1,
        shape="card",
        noun="kind",
        leads=wordings(
            """Is the word an animal, a fruit or a tool?
            Classify the word as animal, fruit or tool.
            Decide whether the word is an animal, fruit or tool.
            Choose the kind of the word: animal, fruit or tool.
            Your job is to label the word as animal, fruit or tool.
            State whether the word names an animal, fruit or tool.
            Read the card and name the kind: animal, fruit or tool.
            Which kind fits the word: animal, fruit or tool?
            Label this word as animal, fruit or tool.
            Pick the kind of this word: animal, fruit or tool.
            Judge if the word is an animal, fruit or tool.
            Sort the word into animal, fruit or tool."""
        ),
        draw=inputs.draw_category,
        decoy=decoy_from("fake_kinds"),
    ),
)
