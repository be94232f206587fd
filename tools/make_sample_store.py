"""Make the bundled store: fiction with the habits of the real data, from a seed, in the raw UCSD layout.

A title has five slots: brand, line, scent, product, size. A customer keeps to a scent and a size, and to a line
within a department, and buys one product after the other in the order of a routine that all customers share.
So the next title can be told word by word, while the item that bears it has hardly been bought: most of the
several thousand items were bought three times or less. What is not sold in the wanted size or scent is
bought in the next best one, so a composed title is not always an item's.

Counting has its part too: which line of the next department goes well with a line is the same for all
customers, and so are the bestsellers. No word of a history says so.

    python tools/make_sample_store.py [folder]
"""

import gzip
import html
import io
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
if str(PROJECT_ROOT) not in sys.path:  # the package need not be installed
    sys.path.insert(0, str(PROJECT_ROOT))

from gloss_utils.paths import write_atomically  # noqa: E402

SEED = 20140723
NUM_USERS = 1200
FIRST_DAY = 1262304000  # 2010-01-01, in seconds; every timestamp is a midnight, as in the real data
SECONDS_PER_DAY = 86_400
SAME_DAY = 0.42  # the share of purchases on the day of the one before

# What a customer does next; what is left is the routine's next product.
SAME_PRODUCT = 0.12  # the product just bought, in another size: what last-item search is good at
BESTSELLER = 0.12  # the routine's next product, but one that everybody buys
BESTSELLERS = 2  # of each product
# How often a customer wants something unusual in one slot of the title.
OTHER_LINE, OTHER_SCENT, OTHER_SIZE = 0.06, 0.08, 0.08

# What is sold: these, and of their combinations only a share.
SCENTS_PER_LINE = 9
SIZES_PER_PRODUCT = 2
SOLD_SHARE = 0.85
FAME = 0.5  # the n-th line or scent is wanted with weight 1 / n ** FAME, and the sizes with these:
SIZE_WEIGHTS = (4, 3, 2)

# The routine: a product is used up, the next one is bought. The last one is followed by the first one.
ROUTINES = {
    "Skin Care": [
        "Gentle Face Cleanser", "Balancing Face Toner", "Brightening Serum", "Daily Moisturizer",
        "Firming Eye Cream", "Overnight Sleeping Mask",
    ],
    "Hair Care": [
        "Clarifying Shampoo", "Smoothing Conditioner", "Deep Repair Hair Mask", "Heat Protection Spray",
        "Soft Hold Styling Cream", "Finishing Hair Oil",
    ],
    "Bath": [
        "Foaming Body Wash", "Polishing Body Scrub", "Rich Body Lotion", "Protective Hand Cream",
        "Softening Foot Balm", "Relaxing Bath Salts",
    ],
    "Makeup": [
        "Smooth Base Primer", "Liquid Foundation", "Creamy Concealer", "Pressed Powder Blush",
        "Satin Lipstick", "Long Wear Setting Spray",
    ],
    "Shaving": [
        "Pre Shave Oil", "Cushion Shave Cream", "Cooling After Shave Balm", "Conditioning Beard Oil",
        "Shaping Beard Wax", "Charcoal Soap Bar",
    ],
}  # fmt: skip
PRODUCTS = [(category, product) for category, products in ROUTINES.items() for product in products]
LINES = [
    ("Fern & Stone", "Morning Dew"), ("Fern & Stone", "Quiet Forest"), ("Lumora", "Velvet Touch"),
    ("Baker's Apothecary", "Old Town"), ("Nordhavn", "Arctic Light"), ("Nordhavn", "Harbor"),
    ("Sol y Mar", "Siesta"), ("Caf\u00e9 Belle", "Soir"), ("Kiyomi", "Silk Road"), ("Oak & Ember", "Fireside"),
    ("Lumora", "Clear Sky"), ("Honest Acre", "Harvest"), ("Bluebell", "Meadow Song"), ("Terra Nova", "Desert Rain"),
]  # fmt: skip
SCENTS = [
    "Rose Water", "Green Tea", "Lavender", "Wild Honey", "Sandalwood", "Coconut", "Bergamot", "Peppermint",
    "Vanilla", "Aloe Vera", "Cedar", "Oat Milk",
]  # fmt: skip
SIZES = ["Full Size", "Travel Size", "Family Size"]


@dataclass(frozen=True)
class Item:
    """One product of the store.

    Attributes:
        asin: unique; in the order of the routine, so that the purchases of one day stay in it.
        title: plain, before entities and blemishes.
        brand, category: as in the metadata.
        product, line, scent, size: places in the lists above.
    """

    asin: str
    title: str
    brand: str
    category: str
    product: int
    line: int
    scent: int
    size: int


def make_items(rng: random.Random) -> list[Item]:
    """Make what the store sells, in the order of the routine."""
    scents = [set(rng.sample(range(len(SCENTS)), SCENTS_PER_LINE)) for _ in LINES]
    sizes = [set(rng.sample(range(len(SIZES)), SIZES_PER_PRODUCT)) for _ in PRODUCTS]
    items = []
    slots = itertools.product(range(len(PRODUCTS)), range(len(LINES)), range(len(SCENTS)), range(len(SIZES)))
    for number, (product, line, scent, size) in enumerate(slots):
        if scent not in scents[line] or size not in sizes[product] or rng.random() > SOLD_SHARE:
            continue
        (category, name), (brand, series) = PRODUCTS[product], LINES[line]
        title = f"{brand} {series} {SCENTS[scent]} {name}, {SIZES[size]}"
        asin = f"B{100000 + number * 31:06d}{_check_letters(title)}"
        items.append(Item(asin, title, brand, category, product, line, scent, size))
    return items


def _check_letters(title: str) -> str:
    """Three letters from the title, so that asins look like asins."""
    total = sum(index * ord(letter) for index, letter in enumerate(title, start=1))
    return "".join(chr(65 + total // 26**place % 26) for place in range(3))


class Store:
    """What is sold, what sells best, what goes with what, and what is bought where the wanted thing is not sold."""

    def __init__(self, rng: random.Random) -> None:
        self.items = make_items(rng)
        self.sold = {(item.product, item.line, item.scent, item.size): item for item in self.items}
        self.untitled = rng.sample(self.items, 40)
        self.bestsellers = [
            rng.sample([item for item in self.items if item.product == product], BESTSELLERS)
            for product in range(len(PRODUCTS))
        ]
        self.scents = [sorted({item.scent for item in self.items if item.line == line}) for line in range(len(LINES))]
        # For each department: which of its lines goes well with which line of the department before.
        self.goes_with = {category: rng.sample(range(len(LINES)), len(LINES)) for category in ROUTINES}

    def closest(self, product: int, line: int, scent: int, size: int) -> Item:
        """The wanted item, or the same in another size, or else in another scent."""
        scents = sorted(self.scents[line], key=lambda other: (other - scent) % len(SCENTS))
        sizes = (size, *range(len(SIZES)))
        places = [(product, line, other, each) for other in (scent, *scents) for each in sizes]
        return next(self.sold[place] for place in places if place in self.sold)

    def other_size(self, item: Item, rng: random.Random) -> Item:
        """The same thing in another size, where it is sold in one."""
        places = [(item.product, item.line, item.scent, size) for size in range(len(SIZES)) if size != item.size]
        return rng.choice([self.sold[place] for place in places if place in self.sold] or [item])


def draw(places: Sequence[int], rng: random.Random) -> int:
    """Draw one of these lines or scents, the first ones more often."""
    return rng.choices(places, [1 / rank**FAME for rank in range(1, len(places) + 1)])[0]


def draw_length(rng: random.Random) -> int:
    """Draw a history length: 5 at least, about 9 on average, a few far longer."""
    mean = rng.choices([2.6, 11.0], [3, 1])[0]
    return 5 + min(60, int(rng.expovariate(1 / mean)))


def walk(store: Store, length: int, rng: random.Random) -> list[Item]:
    """Let one customer buy `length` different items, in the order of the routine most of the time."""
    line = draw(range(len(LINES)), rng)
    scent, size = draw(store.scents[line], rng), rng.choices(range(len(SIZES)), SIZE_WEIGHTS)[0]
    product, steps = rng.randrange(len(PRODUCTS)), 0
    bought: list[Item] = []
    while len(bought) < length:
        habit = rng.random()
        if bought and habit < SAME_PRODUCT:
            item = store.other_size(bought[-1], rng)
        else:
            product, steps = (product + 1) % len(PRODUCTS), steps + 1
            category = PRODUCTS[product][0]
            if category != PRODUCTS[product - 1][0]:
                line = store.goes_with[category][line]
            if steps % len(PRODUCTS) == 0:  # after a whole round, another scent: nothing is bought twice
                scent = draw(store.scents[line], rng)
            if habit > 1 - BESTSELLER:
                item = rng.choice(store.bestsellers[product])
            else:
                item = store.closest(
                    product,
                    draw(range(len(LINES)), rng) if rng.random() < OTHER_LINE else line,
                    draw(store.scents[line], rng) if rng.random() < OTHER_SCENT else scent,
                    rng.randrange(len(SIZES)) if rng.random() < OTHER_SIZE else size,
                )
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
    """Raw titles by asin: with entities, stray blanks, 1 % shared by two items, some empty or missing (None)."""
    items = store.items
    titles = {item.asin: html.escape(item.title).replace("\u00e9", "&eacute;") for item in items}
    for item in rng.sample(items, len(items) // 36):
        titles[item.asin] = " " + titles[item.asin].replace(", ", ",  ")
    for first, second in rng.sample(list(zip(items[::4], items[1::4])), len(items) // 100):
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
    for item in store.items[::120]:
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
    """Make both raw files as gzipped bytes by file name; the same on every machine."""
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


def main() -> None:
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT_ROOT / "data" / "sample" / "raw")


if __name__ == "__main__":
    main()
