"""The bundled store: fiction with the habits of the real data, made from a seed in the raw UCSD layout.

Thirty product lines, each with a routine of six products in four varieties. A customer walks through a
line's routine, then goes on to the line that goes well with it, usually another brand's. Which variety
follows which is a habit of all customers, but no two of them share a word: text similarity cannot see
it, a model trained on histories can.
"""

import gzip
import html
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from gloss_utils.paths import write_atomically

SEED = 20140723
NUM_USERS = 1250
FIRST_DAY = 1262304000  # 2010-01-01, in seconds; every timestamp is a midnight, as in the real data
SECONDS_PER_DAY = 86_400

# What a customer does next.
FOLLOW_ROUTINE = 0.74
OTHER_VARIETY = 0.14  # the same product in another variety: what last-item search is good at
SAME_DAY = 0.42  # the share of purchases on the day of the one before
VARIETY_WEIGHTS = (8, 5, 3, 2)

# A routine: the products of a line, in the order in which they are used up.
ROUTINES = {
    "Skin Care": [
        ("Gentle Face Cleanser", "150 ml"),
        ("Balancing Face Toner", "200 ml"),
        ("Brightening Serum", "30 ml"),
        ("Daily Moisturizer", "50 ml"),
        ("Firming Eye Cream", "15 ml"),
        ("Overnight Sleeping Mask", "75 ml"),
    ],
    "Hair Care": [
        ("Clarifying Shampoo", "400 ml"),
        ("Smoothing Conditioner", "400 ml"),
        ("Deep Repair Hair Mask", "250 ml"),
        ("Heat Protection Spray", "180 ml"),
        ("Soft Hold Styling Cream", "100 ml"),
        ("Finishing Hair Oil", "60 ml"),
    ],
    "Bath": [
        ("Foaming Body Wash", "500 ml"),
        ("Polishing Body Scrub", "300 g"),
        ("Rich Body Lotion", "350 ml"),
        ("Protective Hand Cream", "75 ml"),
        ("Softening Foot Balm", "90 ml"),
        ("Relaxing Bath Salts", "600 g"),
    ],
    "Makeup": [
        ("Smooth Base Primer", "25 ml"),
        ("Liquid Foundation", "28 ml"),
        ("Creamy Concealer", "7 ml"),
        ("Pressed Powder Blush", "5 g"),
        ("Satin Lipstick", "4 g"),
        ("Long Wear Setting Spray", "100 ml"),
    ],
    "Shaving": [
        ("Softening Pre Shave Oil", "50 ml"),
        ("Cushion Shave Cream", "150 g"),
        ("Cooling After Shave Balm", "100 ml"),
        ("Conditioning Beard Oil", "30 ml"),
        ("Shaping Beard Wax", "60 g"),
        ("Charcoal Soap Bar", "120 g"),
    ],
}
VARIETIES = [
    "Rose Water", "Green Tea", "Aloe Vera", "Oat Milk", "Lavender", "Wild Honey", "Cucumber", "Sea Kelp",
    "Argan", "Coconut", "Shea Butter", "Chamomile", "Citrus", "Sandalwood", "Peppermint", "Vanilla",
    "Jojoba", "Ginger Root", "Cedar", "Almond", "Bergamot", "Calendula", "White Clay", "Pomegranate",
]  # fmt: skip
BRANDS = [
    ("Fern & Stone", "Morning Dew", "Quiet Forest"),
    ("Lumora", "Velvet Touch", "Clear Sky"),
    ("Baker's Apothecary", "Old Town", "Sunday Best"),
    ("Nordhavn", "Arctic Light", "Harbor"),
    ("Sol y Mar", "Siesta", "Costa Azul"),
    ("Petal & Pine", "Secret Garden", "Winter Grove"),
    ("Kiyomi", "Silk Road", "First Snow"),
    ("Maison Vert", "Le Jardin", "Petit Matin"),
    ("Honest Acre", "Farmhouse", "Harvest"),
    ("Bluebell", "Meadow Song", "Tiny Blooms"),
    ("Terra Nova", "Red Canyon", "Desert Rain"),
    ("Oak & Ember", "Fireside", "Night Watch"),
    ("Caf\u00e9 Belle", "Soir", "Grand Boulevard"),
    ("Driftwood", "Low Tide", "Salt Air"),
    ("Pure Theory", "Basics", "Lab Notes"),
]


@dataclass(frozen=True)
class Item:
    """One product of the store.

    Attributes:
        asin: unique; in the order of lines, steps and varieties.
        title: plain, before entities and blemishes.
        brand, category: as in the metadata.
        line, step, variety: where it stands in the routines.
    """

    asin: str
    title: str
    brand: str
    category: str
    line: int
    step: int
    variety: int


def make_items(rng: random.Random) -> list[Item]:
    """Make the catalog: 30 lines x 6 products x 4 varieties, in the order in which lines follow each other."""
    lines = [(brand, line) for brand, *names in BRANDS for line in names]
    rng.shuffle(lines)
    categories = list(ROUTINES)
    varieties = {(category, step): rng.sample(VARIETIES, 4) for category in categories for step in range(6)}
    items = []
    for number, (brand, line) in enumerate(lines):
        category = categories[number % len(categories)]
        for step, (product, size) in enumerate(ROUTINES[category]):
            for variety, name in enumerate(varieties[category, step]):
                title = f"{brand} {line} {name} {product}, {size}"
                asin = f"B{1000 + number * 31:04d}{step:02d}{variety}{_check_letters(title)}"
                items.append(Item(asin, title, brand, category, number, step, variety))
    return items


def _check_letters(title: str) -> str:
    """Two letters from the title, so that asins look like asins."""
    total = sum(index * ord(letter) for index, letter in enumerate(title, start=1))
    return chr(65 + total % 26) + chr(65 + total // 26 % 26)


class Store:
    """The catalog with its habits: what follows what, and what is popular."""

    def __init__(self, rng: random.Random) -> None:
        self.items = make_items(rng)
        self.at = {(item.line, item.step, item.variety): item for item in self.items}
        self.untitled = rng.sample(self.items, 14)
        self.num_lines = len(BRANDS) * 2
        fame = list(range(self.num_lines))
        rng.shuffle(fame)  # fame has nothing to do with the place in the catalog
        self.line_weights = [1 / (1 + rank) ** 0.9 for rank in fame]
        self.item_weights = [self.line_weights[item.line] * VARIETY_WEIGHTS[item.variety] for item in self.items]

    def draw_start(self, rng: random.Random) -> tuple[int, int, int]:
        line = rng.choices(range(self.num_lines), self.line_weights)[0]
        return line, rng.choice([0, 0, 0, 1, 2]), rng.choices(range(4), VARIETY_WEIGHTS)[0]

    def after(self, line: int, step: int, variety: int) -> tuple[int, int, int]:
        """The next product of the routine, or the first one of the line that goes well with this one."""
        return (line, step + 1, variety) if step < 5 else ((line + 1) % self.num_lines, 0, variety)


def draw_length(rng: random.Random) -> int:
    """Draw a history length: 5 at least, about 9 on average, a few far longer."""
    mean = rng.choices([2.6, 11.0], [3, 1])[0]
    return 5 + min(60, int(rng.expovariate(1 / mean)))


def walk(store: Store, length: int, rng: random.Random) -> list[Item]:
    """Let one customer buy `length` different items, following the routine most of the time."""
    place = store.draw_start(rng)
    bought = [store.at[place]]
    while len(bought) < length:
        habit = rng.random()
        if habit < FOLLOW_ROUTINE:
            place = store.after(*place)
            item = store.at[place]
        elif habit < FOLLOW_ROUTINE + OTHER_VARIETY:
            item = store.at[place[0], place[1], rng.randrange(4)]
        else:
            item = rng.choices(store.items, store.item_weights)[0]
        if item not in bought:
            bought.append(item)
    return bought


def make_purchases(store: Store, rng: random.Random) -> list[dict]:
    """Make all customers' purchases as review records, in the raw file's order: by asin, then as they came."""
    records = []
    for number, reviewer_id in enumerate(sorted(f"A{rng.getrandbits(62):013X}"[:14] for _ in range(NUM_USERS))):
        day = rng.randrange(1200)
        # Two customers buy little that has a title: they fall under three purchases once it is dropped.
        items = [*store.untitled[:4], store.items[0]] if number in (100, 200) else walk(store, draw_length(rng), rng)
        for item in items:
            records.append(
                {
                    "reviewerID": reviewer_id,
                    "asin": item.asin,
                    "overall": float(rng.choices([5, 4, 3, 2, 1], [58, 20, 11, 6, 5])[0]),
                    "unixReviewTime": FIRST_DAY + day * SECONDS_PER_DAY,
                }
            )
            if rng.random() > SAME_DAY:
                day += 1 + int(rng.expovariate(1 / 25))
    return sorted(records, key=lambda record: record["asin"])


def spoil_titles(store: Store, rng: random.Random) -> dict[str, str | None]:
    """Give the titles the blemishes of the real file.

    Returns:
        asin to raw title: HTML entities, stray blanks, 1 % shared by two items, 2 % empty or missing (None).
    """
    items = store.items
    titles = {item.asin: html.escape(item.title).replace("\u00e9", "&eacute;") for item in items}
    for item in rng.sample(items, 20):
        titles[item.asin] = " " + titles[item.asin].replace(", ", ",  ")
    for first, second in rng.sample(list(zip(items[::4], items[1::4])), 7):
        titles[second.asin] = titles[first.asin]
    for number, item in enumerate(store.untitled):
        titles[item.asin] = None if number else "   "
    return titles


def make_metadata(store: Store, rng: random.Random) -> list[str]:
    """Make the metadata lines: Python literals, with gift sets that nobody buys, duplicates and broken lines."""
    titles = spoil_titles(store, rng)
    lines = []
    for item in store.items:
        record = {"asin": item.asin, "categories": [["Sample", item.category]], "brand": item.brand}
        if titles[item.asin] is not None:
            record["title"] = titles[item.asin]
        if rng.random() < 0.8:
            record["price"] = round(rng.uniform(4, 40), 2)
        lines.append(ascii(record))
    for item in store.items[::24]:
        gift = f"{html.escape(item.brand)} Gift Set, {item.category}"
        lines.append(ascii({"asin": "B9" + item.asin[2:], "title": gift, "brand": item.brand}))
    del lines[37], lines[403]  # sold, but unknown to the metadata
    lines += rng.sample(lines, 6)
    return break_lines(lines, 4, rng)


def make_reviews(store: Store, rng: random.Random) -> list[str]:
    """Make the review lines: JSON, sorted by asin, with exact duplicates and broken lines."""
    lines = [json.dumps(record) for record in make_purchases(store, rng)]
    for position in sorted(rng.sample(range(len(lines)), 24), reverse=True):
        lines.insert(position, lines[position])
    return break_lines(lines, 15, rng)


def break_lines(lines: list[str], count: int, rng: random.Random) -> list[str]:
    """Put broken copies of some lines between the others: cut off, without their brace, or no record at all."""
    for number in range(count):
        position = rng.randrange(len(lines))
        line = lines[position]
        lines.insert(position, [line[: len(line) // 2], line[:-1], "<html>502 Bad Gateway</html>"][number % 3])
    return lines


def make() -> dict[str, bytes]:
    """Make both raw files; the same bytes on every machine.

    Returns:
        file name to gzipped bytes.
    """
    rng = random.Random(SEED)
    store = Store(rng)
    texts = {"reviews_Sample_5.json.gz": make_reviews(store, rng), "meta_Sample.json.gz": make_metadata(store, rng)}
    return {name: _compress("\n".join(lines) + "\n") for name, lines in texts.items()}


def _compress(text: str) -> bytes:
    # No name and no time stamp in the header, so that the bytes depend on nothing but the text.
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as out:
        out.write(text.encode("ascii"))
    return buffer.getvalue()


def write(raw_dir: Path) -> Path:
    """Write the raw files into a folder and return it."""
    for name, content in make().items():
        write_atomically(Path(raw_dir) / name, lambda path, content=content: path.write_bytes(content))
    return Path(raw_dir)
