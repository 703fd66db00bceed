"""Tasks on structured texts: tables, logs, code, receipts, forms, calendars."""

from __future__ import annotations

from random import Random

from causal_core.generator.tasks.inputs import Sample
from causal_core.generator.tasks.task import Task, decoy_from
from causal_core.generator.vocabulary import Pools, wordings


def draw_table(rng: Random, pools: Pools, key: str) -> Sample:
    """A table of three rows; the answer is the city beside a name."""
    names, cities = rng.sample(pools.names, 3), rng.sample(pools.cities, 3)
    numbers = rng.sample(pools.numbers, 3)
    rows = [f"{n} | {c} | {x}" for n, c, x in zip(names, cities, numbers, strict=True)]
    chosen = rng.randrange(3)
    title = "name | city | number"
    return Sample((title, *rows, f"Asked for: {names[chosen]}"), cities[chosen], "\n")


def draw_table_rows(rng: Random, pools: Pools, key: str) -> Sample:
    """A table of two to five rows; the answer is how many."""
    count = rng.randint(2, 5)
    pairs = zip(rng.sample(pools.products, count), rng.sample(pools.numbers, count), strict=True)
    rows = [f"| {product} | {number} |" for product, number in pairs]
    return Sample(("| item | code |", *rows), str(count), "\n")


_SERVICES = {
    "train": ("mailer", "indexer", "billing", "gateway", "search", "backup"),
    "validation": ("cache", "router"), "test_seen": ("ledger", "proxy", "broker"),
    "test_novel": ("archiver", "notifier", "tracker"),
}  # fmt: skip
_INFO = ("started", "is ready", "took a request", "wrote a file", "closed a connection")


def _log(rng: Random, pools: Pools) -> tuple[tuple[str, ...], str, str]:
    """Lines of a log with one error in it, the service that failed and the code."""
    services = _SERVICES[pools.split]
    failed, code = rng.choice(services), rng.choice(pools.numbers)
    minute = rng.randint(0, 50)
    lines = [f"INFO {rng.choice(services)} {rng.choice(_INFO)}" for _ in range(4)]
    lines.insert(rng.randint(1, 4), f"ERROR {failed} failed with code {code}")
    stamped = tuple(f"10:{minute + place:02d} {line}" for place, line in enumerate(lines))
    return stamped, failed, code


def draw_error_code(rng: Random, pools: Pools, key: str) -> Sample:
    """A log; the answer is the code of the error."""
    lines, _, code = _log(rng, pools)
    return Sample(lines, code, "\n")


def draw_failed_service(rng: Random, pools: Pools, key: str) -> Sample:
    """A log; the answer is which service failed."""
    lines, failed, _ = _log(rng, pools)
    return Sample((*lines, f"Host: {rng.choice(pools.cities)}"), failed, "\n")


def _code(rng: Random, pools: Pools) -> tuple[tuple[str, ...], dict[str, str]]:
    words = rng.sample([word for word in pools.words if word.isalpha()], 4)
    module, name, argument, result = words
    lines = (
        f"import {module}",
        f"def get_{name}({argument}):",
        f"    print({argument})",
        f'    return "{result}"',
    )
    return lines, {"import": module, "function": f"get_{name}", "return": result}


def draw_function(rng: Random, pools: Pools, key: str) -> Sample:
    """A few lines of code; the answer is the function's name."""
    lines, known = _code(rng, pools)
    return Sample(lines, known["function"], "\n")


def draw_return(rng: Random, pools: Pools, key: str) -> Sample:
    """A few lines of code; the answer is the text that the function returns."""
    lines, known = _code(rng, pools)
    return Sample(lines, known["return"], "\n")


def draw_import(rng: Random, pools: Pools, key: str) -> Sample:
    """A few lines of code; the answer is the module that is imported."""
    lines, known = _code(rng, pools)
    return Sample(lines, known["import"], "\n")


def draw_receipt(rng: Random, pools: Pools, key: str) -> Sample:
    """A receipt; the answer is the total."""
    items = rng.sample(pools.products, 3)
    prices = [rng.randint(2, 60) for _ in items]
    lines = [f"{item}: {price}.00" for item, price in zip(items, prices, strict=True)]
    total = f"{sum(prices)}.00"
    return Sample((f"Shop in {rng.choice(pools.cities)}", *lines, f"Total: {total}"), total, "\n")


def draw_form(rng: Random, pools: Pools, key: str) -> Sample:
    """A filled form; the answer is the telephone number."""
    phone = f"{rng.choice(pools.numbers)}-{rng.choice(pools.numbers)}"
    lines = (
        f"First name: {rng.choice(pools.names)}",
        f"Town: {rng.choice(pools.cities)}",
        f"Telephone: {phone}",
        f"Since: {rng.choice(pools.dates)}",
    )
    return Sample(lines, phone, "\n")


def draw_calendar(rng: Random, pools: Pools, key: str) -> Sample:
    """A calendar of three entries; the answer is the day of one of them."""
    days, things = rng.sample(pools.dates, 3), rng.sample(pools.words, 3)
    lines = [f"{day}: {thing} day" for day, thing in zip(days, things, strict=True)]
    chosen = rng.randrange(3)
    return Sample((*lines, f"When is {things[chosen]} day?"), days[chosen], "\n")


def _function_decoy(rng: Random, pools: Pools, key: str) -> str:
    return f"get_{rng.choice(pools.words)}"


def _service_decoy(rng: Random, pools: Pools, key: str) -> str:
    return rng.choice(pools.words)


def _total_decoy(rng: Random, pools: Pools, key: str) -> str:
    return f"{rng.randint(6, 180)}.00"


def _phone_decoy(rng: Random, pools: Pools, key: str) -> str:
    return f"{rng.choice(pools.numbers)}-{rng.choice(pools.numbers)}"


RECORDS: tuple[Task, ...] = (
    Task(
        name="table_city", weight=1, noun="city", shape="table", draw=draw_table,
        decoy=decoy_from("cities"),
        leads=wordings(
            """Which city belongs to the name asked for?
            Look up the city of the person in the table.
            Find the city in the row of the name.
            Give the city beside the name asked for.
            Read the table and name the person's city.
            From the table, take the city of that person.
            Name the city that stands in the person's row.
            Say in which city the person is."""
        ),
    ),
    Task(
        name="table_rows", weight=1, noun="number", shape="inventory", draw=draw_table_rows,
        decoy=decoy_from("fake_counts"), held_out=True,
        leads=wordings(
            """How many items does the table hold?
            Count the items of the table.
            Give the number of items in the table.
            Work out how many rows with an item there are.
            Say how many items are listed.
            How many rows of items are there?
            Find the number of rows below the heading.
            Report how many items stand in the table."""
        ),
    ),
    Task(
        name="error_code", weight=1, noun="code", shape="log", draw=draw_error_code,
        decoy=decoy_from("numbers"),
        leads=wordings(
            """Find the error code in the log.
            Which code does the error have?
            Extract the code of the failure from the log.
            Look through the log for the error code.
            Report the code that the service failed with.
            Give the number of the error.
            Read the log and name the error code.
            With which code did it fail?"""
        ),
    ),
    Task(
        name="failed_service", weight=1, noun="service", shape="log", draw=draw_failed_service,
        decoy=_service_decoy,
        leads=wordings(
            """Which service failed?
            Name the service with the error.
            Find the service that failed in the log.
            Look through the log for the failed service.
            Report which service has an error.
            Give the name of the broken service.
            Read the log and say what failed.
            What service is the error from?"""
        ),
    ),
    Task(
        name="function_name", weight=1, noun="name", shape="code", draw=draw_function,
        decoy=_function_decoy,
        leads=wordings(
            """What is the name of the function?
            Find the function's name in the code.
            Name the function that is defined.
            Extract the name of the function from the code.
            Which function does the code define?
            Read the code and give the function's name.
            Look for the defined function and name it.
            Give the name after def."""
        ),
    ),
    Task(
        name="returned_text", weight=1, noun="text", shape="code", draw=draw_return,
        decoy=decoy_from("words"),
        leads=wordings(
            """What does the function return?
            Give the text that the function returns.
            Find the returned text in the code.
            Which text comes back from the function?
            Read the code and name what it returns.
            Extract the returned word from the code.
            Say what the function gives back.
            Name the word that is returned."""
        ),
    ),
    Task(
        name="imported_module", weight=1, noun="module", shape="code", draw=draw_import,
        decoy=decoy_from("words"), held_out=True,
        leads=wordings(
            """Which module is imported?
            Name the module that the code imports.
            Find the imported module.
            Give the name after import.
            What does the code import?
            Report the module in the import line.
            Read the code and name the imported module.
            Say what module is loaded first."""
        ),
    ),
    Task(
        name="receipt_total", weight=1, noun="total", shape="receipt", draw=draw_receipt,
        decoy=_total_decoy, held_out=True,
        leads=wordings(
            """What is the total of the receipt?
            Find the total on the receipt.
            Give the sum at the end of the receipt.
            How much was paid in all?
            Read the receipt and report the total.
            Extract the total amount.
            Name the amount in the total line.
            State the total that the receipt shows."""
        ),
    ),
    Task(
        name="telephone", weight=1, noun="number", shape="form", draw=draw_form,
        decoy=_phone_decoy,
        leads=wordings(
            """Find the telephone number in the form.
            What is the telephone number?
            Extract the phone number from the form.
            Give the number that one can call.
            Read the form and report the telephone number.
            Which telephone number was filled in?
            Copy the phone number of the form.
            State the telephone number given."""
        ),
    ),
    Task(
        name="calendar_day", weight=1, noun="date", shape="calendar", draw=draw_calendar,
        decoy=decoy_from("dates"), held_out=True,
        leads=wordings(
            """On which date is the day asked about?
            Look up the date in the calendar.
            Find the date of the entry asked for.
            Give the date that the question asks about.
            Read the calendar and give the date.
            When is it? Give the date.
            Name the date of the wanted entry.
            State the date that the calendar gives."""
        ),
    ),
)  # fmt: skip
