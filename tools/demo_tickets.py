"""The ticket language of the demo model: seeded, endless support tickets with gold labels.

``TicketMaker`` writes tickets from the phrase tables, in three parts that do not overlap: "train";
"heldout", whose sentences and product names training never sees, though it sees other wordings of
the same phrases; and "new", whose phrases are wholly absent from training.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Sequence
from typing import Literal

import demo_phrases as phrases

from penstock.demo import CATEGORIES, PRIORITIES, SENTIMENTS

Part = Literal["train", "heldout", "new"]

NEW_EVERY = 12  # one phrase in twelve is "new"
HELD_OUT_WORDINGS = 6  # of the others, one wording in six is "heldout" ...
FEWEST_WORDINGS = 8  # ... if it has so many that every key word stays in training
PRODUCT = "\x00"  # stands for the product until typos and letter case are done
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_LONG_FORM = re.compile(r"\b(" + "|".join(phrases.CONTRACTIONS) + r")\b")
_WORD = re.compile(r"[A-Za-z]{5,}")


def wordings(phrase: str) -> int:
    """How many wordings a phrase has."""
    return math.prod(len(options.split("|")) for options in _CHOICE.findall(phrase))


def usable(table: Sequence[str], part: Part) -> list[str]:
    """The phrases of a table that a part uses."""
    chosen = [
        phrase
        for index, phrase in enumerate(table)
        if (index % NEW_EVERY == NEW_EVERY - 1) == (part == "new")
    ]
    return [phrase for phrase in chosen if part != "heldout" or wordings(phrase) >= FEWEST_WORDINGS]


def held_out(wording: str) -> bool:
    """Whether a wording is kept out of training."""
    return zlib.crc32(wording.encode()) % HELD_OUT_WORDINGS == 0


class NameMaker:
    """Makes product names: real words, pronounceable inventions, plain letter soup, codes, with
    suffixes.
    """

    def __init__(self, rng: random.Random, part: Part = "train") -> None:
        self.rng = rng
        self.words, self.nouns = (
            [word for index, word in enumerate(table) if (index % 6 == 5) == (part != "train")]
            for table in (phrases.NAME_WORDS, phrases.NAME_NOUNS)
        )

    def make(self) -> str:
        rng = self.rng
        kind = rng.random()
        if kind < 0.36:
            name = f"{rng.choice(self.words)} {rng.choice(self.nouns)}"
        elif kind < 0.42:
            name = rng.choice(self.words) + rng.choice(self.nouns)
        elif kind < 0.48:
            name = rng.choice(self.words) + rng.choice(self.nouns).lower()
        elif kind < 0.70:
            name = self.invented()
        elif kind < 0.77:
            name = f"{self.invented()} {rng.choice([self.invented(), rng.choice(self.nouns)])}"
        elif kind < 0.88:
            name = "".join(
                rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6))
            ).capitalize()
        else:
            letters = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(1, 4)))
            name = f"{letters}{rng.choice(['-', '', ' '])}{rng.randint(1, 9999)}"
            return name + (" " + rng.choice(phrases.NAME_SUFFIXES) if rng.random() < 0.2 else "")
        return name + self.suffix()

    def invented(self) -> str:
        """A made-up word of two to four syllables."""
        rng = self.rng
        heads = [
            "b",
            "br",
            "c",
            "ch",
            "cl",
            "cr",
            "d",
            "dr",
            "f",
            "fl",
            "fr",
            "g",
            "gl",
            "gr",
            "h",
            "j",
            "k",
            "kl",
            "kr",
            "l",
            "m",
            "n",
            "p",
            "pl",
            "pr",
            "qu",
            "r",
            "s",
            "sh",
            "sk",
            "sl",
            "st",
            "t",
            "th",
            "tr",
            "v",
            "w",
            "x",
            "y",
            "z",
        ]
        tails = ["", "", "", "n", "r", "l", "s", "x", "m", "t", "k", "nd", "rt", "ll"]
        syllables = rng.choice([2, 2, 2, 3])
        vowels = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ia", "ea", "oo", "y", "au"]
        name = "".join(
            rng.choice(heads) + rng.choice(vowels) for _ in range(syllables)
        ) + rng.choice(tails)
        if rng.random() < 0.2:
            name = rng.choice("aeiou") + name
        return name.capitalize()

    def suffix(self) -> str:
        rng = self.rng
        word = rng.choice(phrases.NAME_SUFFIXES)
        number = str(
            rng.choice(
                [
                    rng.randint(1, 9),
                    rng.randint(10, 99),
                    rng.randint(100, 999),
                    rng.randint(1, 9) * 1000,
                ]
            )
        )
        letter = rng.choice("ABCDEFGKLMPQRSTVXZ")
        shapes = [
            f" {word}",
            f" {word}",
            f" {number}",
            f" {number}",
            f" {number} {word}",
            f" {word} {number}",
            f" {letter}{rng.randint(1, 99)}",
            f" {letter}",
            f" v{rng.randint(1, 9)}",
            f"-{number}",
            f" {letter}{rng.randint(1, 9)} {word}",
        ]
        return rng.choice(shapes) if rng.random() < 0.55 else ""


class TicketMaker:
    """Writes support tickets together with their gold labels."""

    def __init__(
        self, seed: int, part: Part = "train", banned_names: frozenset[str] = frozenset()
    ) -> None:
        self.part = part
        self.typo_rate = 0.3  # share of tickets with misspelt words
        self.rng = random.Random(f"{seed}-{part}")
        self.names = NameMaker(self.rng, part)
        self.banned_names = banned_names
        self.clauses = {key: usable(table, part) for key, table in phrases.CATEGORY_CLAUSES.items()}
        self.priorities = {key: usable(table, part) for key, table in phrases.PRIORITY_CUES.items()}
        self.sentiments = {
            key: usable(table, part) for key, table in phrases.SENTIMENT_CUES.items()
        }

    def make(self) -> dict[str, str]:
        """Return a new ticket: its text and its labels."""
        rng = self.rng
        product = self.names.make()
        while product.lower() in self.banned_names:
            product = self.names.make()
        labels = {
            "category": rng.choice(CATEGORIES),
            "priority": rng.choice(PRIORITIES),
            "product": product,
            "sentiment": rng.choice(SENTIMENTS),
        }
        text = self.body(labels)
        if rng.random() < 0.4:
            text = _LONG_FORM.sub(lambda match: phrases.CONTRACTIONS[match.group()], text)
        if rng.random() < self.typo_rate:
            text = self.misspell(text)
        if rng.random() < 0.15:
            text = text.lower()  # the product keeps its capital letters
        return {"ticket": text.replace(PRODUCT, labels["product"]), **labels}

    def body(self, labels: dict[str, str]) -> str:
        """The text with ``PRODUCT`` in the place of every product name."""
        rng = self.rng
        before, after = [], []
        clause = self.word(self.clauses[labels["category"]])
        if rng.random() < 0.22:
            before.append(self.expand(rng.choice(phrases.INTROS), named=True))
            main = self.expand(clause, named=False)
        else:
            main = self.expand(clause, named=True)
        if not main.endswith("?") and ":" not in main and rng.random() < 0.15:
            main = f"{self.expand(rng.choice(phrases.FRAMES), named=True)} {main}"
        extras = []
        if labels["priority"] != "normal" or rng.random() < 0.35:
            extras.append(self.word(self.priorities[labels["priority"]]))
        if labels["sentiment"] != "neutral":
            extras.append(self.word(self.sentiments[labels["sentiment"]]))
        if rng.random() < 0.25:
            extras.append(rng.choice(phrases.NOISE))
        for extra in extras:
            place = before if rng.random() < 0.3 else after
            sentence = self.expand(extra, named=rng.random() < 0.3)
            if rng.random() < 0.15:
                sentence = f"{self.expand(rng.choice(phrases.OPENERS), named=True)} {sentence}"
            place.append(sentence)
        rng.shuffle(after)
        if rng.random() < 0.3:
            rng.shuffle(before)
        return self.join([*before, main, *after])

    def join(self, sentences: list[str]) -> str:
        """Punctuation, greeting and sign-off."""
        rng = self.rng
        loud = rng.random() < 0.15
        careless = rng.random() < 0.1  # no capital letters at the start of sentences
        pieces: list[str] = []
        for index, sentence in enumerate(sentences):
            joined = False
            if index and rng.random() < 0.18 and pieces[-1][-1] not in "?:":
                pieces[-1] = pieces[-1].rstrip(".!") + rng.choice(
                    [", and ", " and ", ", but ", " but ", ", ", " - ", "; ", " ... "]
                )
                joined = True
            if not joined and not careless:
                sentence = sentence[0].upper() + sentence[1:]
            if sentence[-1] not in "?!.":
                sentence += rng.choice("!!.") if loud else "."
            if joined:
                pieces[-1] += sentence
            else:
                pieces.append(sentence)
        glue = "\n" if rng.random() < 0.07 else " "
        text = glue.join(pieces)
        if rng.random() < 0.1:
            text = text.rstrip(".")
        if rng.random() < 0.35:
            text = rng.choice(phrases.GREETINGS) + rng.choice([" ", " ", "\n"]) + text
        if rng.random() < 0.3:
            text += rng.choice([" ", " ", "\n"]) + rng.choice(phrases.SIGN_OFFS)
            if rng.random() < 0.6:
                text += ", " + rng.choice(phrases.PEOPLE)
        return text

    def word(self, table: Sequence[str]) -> str:
        """A wording of one of these phrases that belongs to this part, slots still open."""
        while True:
            phrase = self.rng.choice(table)
            for _ in range(12):
                wording = self.choose(phrase)
                few = wordings(phrase) < FEWEST_WORDINGS
                if self.part == "new" or few or held_out(wording) == (self.part == "heldout"):
                    return wording

    def choose(self, phrase: str) -> str:
        """Choose among the alternatives of a phrase."""
        return _CHOICE.sub(lambda match: self.rng.choice(match.group(1).split("|")), phrase)

    def expand(self, phrase: str, named: bool) -> str:
        """Choose among the alternatives of a phrase and fill its slots."""
        phrase = self.choose(phrase)
        phrase = _SLOT.sub(lambda slot: self.fill(slot.group(1), named), phrase)
        return re.sub(r" +([,.?:]|$)", r"\1", re.sub(r"  +", " ", phrase)).strip()

    def fill(self, slot: str, named: bool) -> str:
        rng = self.rng
        if slot == "p":
            full = rng.choice(["my ", "my ", "our ", "the ", "", "", "", "", "your "]) + PRODUCT
            return full if named else rng.choice(["it", "it", "this product", "this"])
        if slot == "x":
            return PRODUCT if named else "product"
        if slot == "y":
            return PRODUCT if named else rng.choice(["it", "this product", "the product"])
        if slot == "n":
            return rng.choice(
                ["two", "three", "four", "five", "six", "2", "3", "4", "5", "6", "7", "8", "9"]
            )
        if slot == "m":
            return str(rng.randint(10, 99))
        if slot == "day":
            return rng.choice(DAYS)
        if slot == "ref":
            return str(rng.randint(100, 999999))
        raise ValueError(f"unknown slot {slot!r}")

    def misspell(self, text: str) -> str:
        """One or two typing errors: letters swapped, dropped or doubled, never inside the
        product.
        """
        rng = self.rng
        for _ in range(rng.choice([1, 1, 1, 2])):
            words = list(_WORD.finditer(text))
            if not words:
                break
            word = rng.choice(words)
            at = rng.randrange(word.start() + 1, word.end() - 1)
            kind = rng.randrange(3)
            if kind == 0:
                text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
            elif kind == 1:
                text = text[:at] + text[at + 1 :]
            else:
                text = text[:at] + text[at] + text[at:]
        return text
