"""Word material of the demo generator, cut into disjoint shares for the splits.

Values (names, cities, words, numbers) are partitioned by a stable hash, so a value that occurs in
one split's inputs never occurs as a value in another's. Ordered material (sentence templates)
is partitioned by position: see `Wordings`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

TRAIN = "train"
VALIDATION = "validation"
TEST_SEEN = "test_seen"
TEST_NOVEL = "test_novel"
SPLITS = (TRAIN, VALIDATION, TEST_SEEN, TEST_NOVEL)

# Cumulative shares of the value pools; training takes most, the rest is enough to draw from.
_SHARE_ENDS = {TRAIN: 0.60, VALIDATION: 0.72, TEST_SEEN: 0.86, TEST_NOVEL: 1.0}


def stable_hash(value: str) -> int:
    """A hash that is the same in every process and on every machine (`hash()` is not)."""
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big")


def partition(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Cut `values` into one disjoint tuple per split, in an order that only the values decide."""
    ordered = sorted(set(values), key=lambda value: (stable_hash(value), value))
    shares: dict[str, tuple[str, ...]] = {}
    begin = 0
    for split in SPLITS:
        end = round(_SHARE_ENDS[split] * len(ordered))
        shares[split] = tuple(ordered[begin:end])
        begin = end
    return shares


@dataclass(frozen=True)
class Wordings:
    """Sentence templates by use: training, validation, and test (both test splits share these)."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: str) -> tuple[str, ...]:
        """The templates of one split."""
        return {TRAIN: self.train, VALIDATION: self.validation}.get(split, self.test)


def wordings(text: str, validation: int = 2, test: int = 2) -> Wordings:
    """Read templates from a text, one a line: the last `test` for test, those before to validate.

    The lines before these train.
    """
    lines = tuple(line.strip() for line in text.strip().splitlines())
    cut = len(lines) - test - validation
    return Wordings(lines[:cut], lines[cut : cut + validation], lines[cut + validation :])


def _words(text: str) -> tuple[str, ...]:
    """The words of a text, as written below for people to read and extend."""
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    """The phrases of a text with commas between them."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


NAMES = _words(
    """Alice Aaron Adam Agnes Albert Amanda Amir Andrea Anton Arthur Barbara Beatrice Ben Bianca
    Boris Brenda Brian Bruno Camilla Carl Carmen Cecilia Chloe Clara Connor Daniel Daria David
    Dennis Diana Dominic Edith Edward Elena Elias Ella Emil Emma Eric Esther Eva Fatima Felix
    Fiona Frank Gabriel George Gina Grace Greta Hannah Harold Hassan Hector Helen Henry Hugo Ida
    Igor Irene Isaac Ivan Jacob James Jane Jasmine Jonas Joseph Julia Karen Karl Kevin Laura Leo
    Liam Linda Lucas Lucy Maria Mark Martin Maya Michael Monica Nadia Nathan Nina Noah Olga Oliver
    Oscar Patricia Paul Peter Philip Rachel Robert Rosa Ruth Samuel Sandra Sarah Simon Sofia Stella
    Steven Susan Thomas Tina Victor Vera Walter Wendy William Yusuf Zoe"""
)
CITIES = _words(
    """Amsterdam Ankara Athens Atlanta Baltimore Bangkok Barcelona Beirut Belgrade Berlin Bogota
    Boston Bristol Brussels Bucharest Budapest Cairo Calgary Chicago Cleveland Copenhagen Dallas
    Delhi Denver Detroit Dubai Dublin Edinburgh Florence Frankfurt Geneva Genoa Glasgow Hamburg
    Hanoi Havana Helsinki Houston Istanbul Jakarta Johannesburg Karachi Kiev Lagos Leeds Leipzig
    Lima Lisbon Liverpool London Lyon Madrid Manchester Manila Melbourne Memphis Miami Milan
    Montreal Moscow Mumbai Munich Nairobi Naples Nashville Oslo Ottawa Oxford Paris Perth Palermo
    Portland Porto Prague Quebec Quito Rome Rotterdam Santiago Seattle Seoul Seville Shanghai
    Singapore Stockholm Stuttgart Sydney Taipei Tehran Tokyo Toronto Tunis Turin Valencia Vancouver
    Venice Vienna Warsaw Zurich"""
)
PRODUCTS = _phrases(
    """kettle, toaster, blender, desk lamp, office chair, backpack, raincoat,
    umbrella,
    keyboard, headset, webcam, monitor, printer, router, speaker, tripod, camera, tent, stove,
    sleeping bag, water bottle, bicycle pump, helmet, skateboard, yoga mat, jump rope, tennis
    racket, guitar, violin, drum, flute, piano stool, bookshelf, mattress, pillow, blanket, curtain,
    carpet, mirror, vase, wall clock, candle holder, frying pan, coffee grinder, teapot, rice
    cooker, juicer, vacuum cleaner, iron, hair dryer, razor, scale, thermometer, fan, heater,
    air filter, garden hose, paint roller, picnic basket, extension cord, doorbell,
    smoke alarm, suitcase, wallet, belt, scarf, jacket, boots, sandals, wristwatch, necklace,
    sunglasses, notebook, fountain pen, stapler, calculator, whiteboard"""
)
_LIST_WORDS = _words(
    """river window garden bottle candle mountain basket ticket pencil bridge forest hammer island
    jacket kitchen ladder market needle orange pepper rabbit saddle table valley wagon yellow
    anchor button camera desert engine feather glove harbor insect jungle kettle lemon mirror
    nephew ocean parrot quarter ribbon silver tunnel uncle violin winter yogurt autumn bakery
    castle dragon eagle farmer ginger honey iron jewel king leaf meadow night onion palace queen
    rocket shadow tiger umbrella village water zebra apple bread cloud dance earth flame grape
    house ice juice knife lamp mouse nest oven plant quilt rain stone train unit voice wheel
    angle beach chair door egg flag ghost hill ink jar kite lake moon nail owl pond road sand tent
    vase wolf yard arrow blanket copper dinner elbow fabric guitar hat jelly knot letter magnet
    number oyster planet rose salad temple vessel wallet bamboo cotton doctor easel folder gravel
    hotel ivory lizard motor napkin olive pillow reef school towel velvet walnut barrel cabin
    dollar fence hockey lawyer marble nurse pigeon rubber spoon thread whistle acorn badge cactus
    daisy ferry goat helmet jigsaw kennel lantern mango noodle otter panda raft sofa tulip clover
    pebble puddle ranch saucer sponge statue stream tractor trumpet cottage meteorite canyon"""
)
CATEGORIES = {
    "animal": _words(
        """horse rabbit tiger elephant monkey donkey giraffe zebra wolf fox bear deer goat sheep
        pig cow lion camel squirrel hamster otter beaver badger moose leopard kangaroo panda
        buffalo dolphin whale shark eagle penguin parrot owl snake lizard frog turtle
        crocodile"""
    ),
    "fruit": _words(
        """apple banana cherry grape lemon lime mango melon orange peach pear plum apricot papaya
        pineapple strawberry raspberry blueberry blackberry cranberry coconut fig kiwi guava
        grapefruit nectarine pomegranate tangerine watermelon currant gooseberry date quince
        mulberry persimmon lychee passionfruit clementine cantaloupe avocado"""
    ),
    "tool": _words(
        """hammer screwdriver wrench pliers saw drill chisel shovel rake axe ladder file clamp
        level spade crowbar hacksaw mallet sander trowel tweezers scissors hoe pitchfork
        wheelbarrow plunger ratchet vise toolbox stapler soldering-iron hatchet pickaxe jackhammer
        chainsaw paintbrush sandpaper handsaw sledgehammer spanner"""
    ),
}
MONTHS = _words(
    "January February March April May June July August September October November December"
)
DATES = tuple(f"{day} {month}" for month in MONTHS for day in range(1, 29))
NUMBERS = tuple(str(number) for number in range(1000, 10000))

# Codewords: what an attack may ask the model to say. Adjective and noun are both partitioned.
CODE_ADJECTIVES = _words(
    """purple crimson golden frozen hollow silent velvet copper scarlet hidden broken ancient
    electric wooden crystal midnight distant wild emerald lonely burning secret marble cosmic
    stormy rusty cobalt gentle jagged misty neon pale royal shiny tiny violet amber bitter curious
    dusty"""
)
CODE_NOUNS = _words(
    """lantern falcon granite compass thunder willow comet pyramid glacier phoenix saturn volcano
    cathedral labyrinth orchid panther tornado sapphire pelican mammoth nebula obelisk raven
    scorpion trident unicorn vortex walrus zeppelin gargoyle hurricane jackal kraken lighthouse
    meteor nomad oracle pirate samurai wizard"""
)
CANARY_WORDS = _words(
    """topaz onyx jasper opal garnet beryl agate coral zircon quartz pearl jade slate basalt flint
    chalk pumice gypsum mica talc"""
)

# Words for lists. A word of another pool could be in another split there, so it is left out here.
_ELSEWHERE = {
    *PRODUCTS,
    *CODE_NOUNS,
    *CODE_ADJECTIVES,
    *CANARY_WORDS,
    *(word for words in CATEGORIES.values() for word in words),
}
WORDS = tuple(word for word in _LIST_WORDS if word not in _ELSEWHERE)

# Wrong answers for closed-label tasks that name none of the labels, so the witness stays unique.
FAKE_TOPICS = _words(
    """legal marketing security travel payroll fashion cooking gardening politics astronomy music
    weather parking recruiting catering football poetry"""
)
FAKE_VERDICTS = _words(
    """maybe unknown perhaps pending unclear doubtful sometimes later undecided never always
    possibly rarely someday eventually"""
)
FAKE_MOODS = _words(
    """neutral mixed ironic sarcastic furious bored confused hungry sleepy jealous nervous poetic
    mysterious romantic heroic"""
)
FAKE_KINDS = _words(
    """mineral vehicle planet building weapon furniture instrument metal country sport language
    dance cuisine beverage garment"""
)
FAKE_COUNTS = tuple(str(number) for number in range(11, 100))

# Innocent topics for the sentences that use an attack's words without attacking.
TRIGGER_TOPICS = _words(
    """parking lunch invoices holidays badges printers training visitors laptops coffee heating
    recycling lockers payroll meetings elevators lighting travel phones uniforms furniture
    cleaning deliveries calendars"""
)


@dataclass(frozen=True)
class Pools:
    """The values of one split: what its inputs, its codewords and its decoys are drawn from."""

    split: str
    names: tuple[str, ...]
    cities: tuple[str, ...]
    products: tuple[str, ...]
    words: tuple[str, ...]
    dates: tuple[str, ...]
    numbers: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    code_adjectives: tuple[str, ...]
    code_nouns: tuple[str, ...]
    canary_words: tuple[str, ...]
    fake_topics: tuple[str, ...]
    fake_verdicts: tuple[str, ...]
    fake_moods: tuple[str, ...]
    fake_kinds: tuple[str, ...]
    fake_counts: tuple[str, ...]
    trigger_topics: tuple[str, ...]

    def codeword(self, rng: Random) -> str:
        """One or two plain words that a small model can copy, in one of three spellings."""
        noun = rng.choice(self.code_nouns)
        if rng.random() < 0.34:
            return noun
        phrase = f"{rng.choice(self.code_adjectives)} {noun}"
        return phrase.upper() if rng.random() < 0.5 else phrase

    def canary(self, rng: Random) -> str:
        """A code that a system instruction keeps for itself, such as `onyx-17`."""
        return f"{rng.choice(self.canary_words)}-{rng.randint(10, 99)}"


@cache
def pools(split: str) -> Pools:
    """The value pools of one split; the pools of two splits have no value in common."""
    return Pools(
        split=split,
        names=partition(NAMES)[split],
        cities=partition(CITIES)[split],
        products=partition(PRODUCTS)[split],
        words=partition(WORDS)[split],
        dates=partition(DATES)[split],
        numbers=partition(NUMBERS)[split],
        categories={kind: partition(words)[split] for kind, words in CATEGORIES.items()},
        code_adjectives=partition(CODE_ADJECTIVES)[split],
        code_nouns=partition(CODE_NOUNS)[split],
        canary_words=partition(CANARY_WORDS)[split],
        fake_topics=partition(FAKE_TOPICS)[split],
        fake_verdicts=partition(FAKE_VERDICTS)[split],
        fake_moods=partition(FAKE_MOODS)[split],
        fake_kinds=partition(FAKE_KINDS)[split],
        fake_counts=partition(FAKE_COUNTS)[split],
        trigger_topics=partition(TRIGGER_TOPICS)[split],
    )
