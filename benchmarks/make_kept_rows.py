"""Make the bundled rows of general skills, by which a comparison sees what a training loses.

    python benchmarks/make_kept_rows.py

Writes prompts with short responses that a language model does without any tuning: facts, words,
counting, sums, spelling, copying, and the ends of sentences. All of it was written for this file,
from common knowledge and a story of our own, so it has the licence of the package. Rows are short,
so that scoring all of them costs little beside a training.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_uppercase

TARGET = Path(__file__).parents[1] / "src" / "lorada" / "recipes" / "rows" / "general.jsonl"
SEED = 65
# Of a skill whose rows are numbers or letters that are drawn.
DRAWN = 40

CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing,
Russia Moscow, Egypt Cairo, Greece Athens, Portugal Lisbon, Austria Vienna, Poland Warsaw,
Hungary Budapest, Ireland Dublin, Norway Oslo, Sweden Stockholm, Denmark Copenhagen,
Finland Helsinki, Belgium Brussels, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa,
Australia Canberra, Kenya Nairobi, Iran Tehran, Iraq Baghdad, Turkey Ankara, Thailand Bangkok,
Vietnam Hanoi, Nepal Kathmandu, Indonesia Jakarta, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia,
Serbia Belgrade, Croatia Zagreb, Syria Damascus, Lebanon Beirut, Jordan Amman"""
OPPOSITES = """hot cold, big small, up down, left right, day night, black white, good bad,
old young, rich poor, fast slow, hard soft, high low, long short, wet dry, open closed, full empty,
strong weak, early late, light dark, happy sad, clean dirty, cheap expensive, easy difficult,
inside outside, above below, before after, first last, always never, love hate, win lose,
buy sell, push pull, true false, war peace, life death, male female, north south, east west,
summer winter, start end"""
PLURALS = """mouse mice, foot feet, tooth teeth, child children, man men, woman women, goose geese,
cat cats, dog dogs, house houses, box boxes, city cities, baby babies, leaf leaves, wolf wolves,
knife knives, wife wives, life lives, book books, car cars, tree trees, church churches,
bus buses, story stories, country countries, family families, shoe shoes, glass glasses,
potato potatoes, hero heroes"""
PASTS = """go went, see saw, eat ate, come came, run ran, take took, give gave, make made,
write wrote, speak spoke, drive drove, fly flew, swim swam, sing sang, buy bought, think thought,
bring brought, teach taught, sleep slept, leave left, find found, lose lost, meet met, win won,
sit sat, stand stood, tell told, hear heard, hold held, know knew, grow grew,
walk walked, play played, work worked, call called, help helped, try tried, cook cooked,
open opened, need needed"""
KINDS = """dog animal, cat animal, horse animal, cow animal, rose flower, tulip flower, oak tree,
pine tree, apple fruit, banana fruit, carrot vegetable, cabbage vegetable, piano instrument,
guitar instrument, violin instrument, hammer tool, saw tool, salmon fish, shark fish, eagle bird,
owl bird, parrot bird, bee insect, ant insect, chair furniture, table furniture, shirt clothing,
gold metal, iron metal, copper metal, red color, blue color, football sport, tennis sport,
French language, Spanish language, Monday day, April month, Paris city, London city"""
SAYINGS = """Better late than|never
Practice makes|perfect
Time is|money
Actions speak louder than|words
The early bird catches the|worm
When in Rome, do as the Romans|do
A picture is worth a thousand|words
Where there is smoke, there is|fire
Honesty is the best|policy
All that glitters is not|gold
An apple a day keeps the doctor|away
Curiosity killed the|cat
Don't judge a book by its|cover
Every cloud has a silver|lining
Rome was not built in a|day
The pen is mightier than the|sword
Two wrongs do not make a|right
You cannot have your cake and eat it|too
Knowledge is|power
Out of sight, out of|mind
Like father, like|son
Once upon a|time
Ladies and|gentlemen
Happy birthday to|you
Thank you very|much
Merry Christmas and a Happy New|Year
The United States of|America
The sun rises in the east and sets in the|west
To be, or not to|be
Birds of a feather flock|together
Snow is white and grass is|green
Bananas are yellow and blood is|red
Bees make|honey
Cows give us|milk
Hens lay|eggs
Fish live in the|water
Ice is frozen|water
At night we see the moon and the|stars
A year has twelve|months
A week has seven|days
An hour has sixty|minutes
A triangle has three|sides
A spider has eight|legs
We see with our eyes and hear with our|ears
We smell with our|nose
Salt and|pepper
Bread and|butter
Black and|white
Ten years are a|decade
A hundred years are a|century"""
WORDS = """apple river stone house green table water bread light paper music black train window
garden summer winter school doctor market bridge island forest silver orange yellow planet
flower kitchen mountain"""
SHORT_WORDS = """cat dog sun hat bed cup pen map bus car fox pig cow hen egg ice oil arm leg box
key jam net van zoo bag log mud nut owl"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = """January February March April May June July August September October November
December"""
NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty"""
STORY = """A small harbour town has a clock that | nobody winds any more.
It hangs on the wall of the old customs house, above | a door that is painted green.
Its hands have stood at twenty past four for longer than | most people can remember.
Visitors sometimes ask | whether it will be repaired.
There is no money for it this year, and perhaps there | will be some in the next.
At six in the morning the first boats | come back.
The women who run the market set out | their tables in two rows.
They sell fish, of course, but also | onions, bread, eggs, and honey.
By nine the best of it | is gone.
The baker closes his shop for an hour so that he can | drink his coffee in peace.
The children who are late for school | run past his window.
In summer the water is warm enough to swim in | until October.
In winter the wind comes | from the north.
The waves throw small stones onto the road along | the shore.
A man with a broom and a cart has the task of | sweeping them back.
He says that he does not mind, because the sea | gives him work.
There is a library with | two rooms.
The first has newspapers and a stove, and is therefore | full from November to March.
The second | has the books.
The librarian came here as a young teacher and meant to | stay for one winter.
She knows which of her readers like | stories about crimes.
She writes the title on a card and | sends it to the city.
It takes about two weeks until | the parcel arrives.
Every few years there is a plan for a bridge across | the mouth of the river.
A model of wood and paper is shown in | the town hall.
People walk around it and point at the place where | their own house would be.
So far the ferry has outlived each of | these plans.
It carries six cars or | forty people.
It needs nine minutes, and the price has risen | only once.
Some of them check their watches, as if the clock | could still be right."""

Pair = tuple[str, str]  # prompt and response


def main() -> None:
    rows = []
    for skill, pairs in skills().items():
        assert len(set(pairs)) == len(pairs), f"{skill} has a row twice"
        rows += [{"prompt": prompt, "response": f" {end}"} for prompt, end in pairs]
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} rows in {TARGET}")


def skills() -> dict[str, list[Pair]]:
    """The rows of each skill."""
    generator = random.Random(SEED)
    return {
        "capitals": [(f"The capital of {country} is", city) for country, city in pairs(CAPITALS)],
        "opposites": [(f"The opposite of {word} is", other) for word, other in pairs(OPPOSITES)],
        "plurals": [(f"One {word}, two", words) for word, words in pairs(PLURALS)],
        "past tense": [
            (f"Today they {verb}. Yesterday they", past) for verb, past in pairs(PASTS)
        ],
        "kinds": [
            (f"pear: fruit\nsilver: metal\n{thing}:", kind) for thing, kind in pairs(KINDS)
        ],
        "sayings": list(lines(SAYINGS)),
        "stories": [(start.strip(), end.strip()) for start, end in lines(STORY)],
        "days and months": [*following(DAYS.split()), *following(MONTHS.split())],
        "counting": [*counted(NUMBERS.split()), *drawn(generator, count_up)],
        "alphabet": counted(list(ascii_uppercase)),
        "sums": drawn(generator, small_sum),
        "capital letters": [
            (f"sand: SAND\ncloud: CLOUD\n{word}:", word.upper()) for word in WORDS.split()
        ],
        "spelling": [(f"tea: t-e-a\n{word}:", "-".join(word)) for word in SHORT_WORDS.split()],
        "copying": drawn(generator, repeated),
    }  # fmt: skip


def pairs(text: str) -> Iterator[Pair]:
    """The two words of each entry between commas."""
    for entry in text.split(","):
        first, second = entry.split()
        yield first, second


def lines(text: str) -> Iterator[Pair]:
    """The two parts of each line."""
    for line in text.splitlines():
        start, _, end = line.partition("|")
        yield start, end


def following(names: list[str]) -> list[Pair]:
    """Three of the names that come round again and again, and the next one."""
    rows = []
    for start in range(len(names)):
        shifted = [*names[start:], *names[:start]]
        rows.append((f"{', '.join(shifted[:3])},", shifted[3]))
    return rows


def counted(names: list[str]) -> list[Pair]:
    """Four names in a row, and the fifth."""
    rows = []
    for start in range(len(names) - 4):
        rows.append((f"{', '.join(names[start : start + 4])},", names[start + 4]))
    return rows


def drawn(generator: random.Random, draw_row: Callable[[random.Random], Pair]) -> list[Pair]:
    """Different rows that ``draw_row`` draws."""
    rows: dict[Pair, None] = {}
    while len(rows) < DRAWN:
        rows[draw_row(generator)] = None
    return list(rows)


def count_up(generator: random.Random) -> Pair:
    """Numbers in steps of 1, 2, 5 or 10."""
    step = generator.choice([1, 2, 5, 10])
    start = step * generator.randint(1, 12)
    shown = ", ".join(str(start + step * place) for place in range(4))
    return f"{shown},", str(start + 4 * step)


def small_sum(generator: random.Random) -> Pair:
    """A sum of two digits, behind two others."""
    first, second = generator.randint(1, 9), generator.randint(1, 9)
    return f"1 + 1 = 2, 2 + 3 = 5, {first} + {second} =", str(first + second)


def repeated(generator: random.Random) -> Pair:
    """Three words twice, the last of them missing."""
    words = ", ".join(generator.sample(WORDS.split(), 3))
    without_last, _, last = words.rpartition(" ")
    return f"{words}; {words}; {without_last}", last


if __name__ == "__main__":
    main()
