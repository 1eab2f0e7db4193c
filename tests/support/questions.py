"""Multiple-choice questions for real models, made by a seed: nothing is downloaded."""

from __future__ import annotations

import random
from typing import NamedTuple

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Canada": "Ottawa",
    "Kenya": "Nairobi",
    "Iceland": "Reykjavík",
    "Brazil": "Brasília",
    "Turkey": "Ankara",
    "Australia": "Canberra",
    "Argentina": "Buenos Aires",
    "New Zealand": "Wellington",
    "Costa Rica": "San José",
    "Mexico": "Mexico City",
}
OPPOSITES = {
    "hot": "cold",
    "up": "down",
    "early": "late",
    "rich": "poor",
    "ancient": "modern",
    "victory": "defeat",
    "to remember": "to forget",
    "to arrive": "to depart",
    "to build up": "to tear down",
    "expensive": "cheap",
    "transparent": "opaque",
    "generous": "stingy",
}
WORDS = {
    ("French", "cat"): "chat",
    ("French", "summer"): "été",
    ("French", "boy"): "garçon",
    ("German", "street"): "Straße",
    ("German", "beautiful"): "schön",
    ("German", "train station"): "Bahnhof",
    ("Spanish", "tomorrow"): "mañana",
    ("Spanish", "heart"): "corazón",
    ("Japanese", "water"): "水",
    ("Japanese", "mountain"): "山",
    ("Russian", "house"): "дом",
    ("Greek", "sea"): "θάλασσα",
}
ENDINGS = {
    "She put the kettle on because": ["she wanted some tea", "the moon is round", "of"],
    "The dog barked at the postman,": [
        "who quickly closed the gate",
        "who was made of two numbers and a half",
        "blue",
    ],
    "It rained all night, so in the morning": [
        "the streets were wet",
        "the streets were wet, and so were the gardens, the roofs and the benches in the park",
        "the streets were dry",
    ],
    "He forgot his keys and": ["could not get in", "could not get in.", "flew to seven"],
    "To bake bread you need": ["flour", "flour, water, salt and yeast", "a telephone"],
    "At the end of the film the audience": ["applauded", "evaporated", "was a kind of soup"],
}
PEOPLE = ["Ada", "Boris", "Chiara", "Dmitri", "Élise", "Farouk", "Greta", "Hiro"]
THINGS = ["lamp", "kite", "teapot", "guitar", "map", "umbrella", "chessboard", "ladder"]
COLOURS = ["red", "green", "dark blue", "yellow", "silver", "pale pink"]


class Question(NamedTuple):
    """What stands before each of the choices, which follow without anything between."""

    prompt: str
    choices: list[str]
    right: int


def questions(count: int, seed: int = 0) -> list[Question]:
    """As many questions, no two alike, of two to five choices each. Prompts are of some ten to some
    hundred tokens, and many begin alike; choices are of one token or many, and one may be the
    beginning of another.
    """
    dice = random.Random(seed)
    kinds = [_capital, _opposite, _word, _sum, _ending, _story]
    found: dict[tuple[str, tuple[str, ...]], Question] = {}
    while len(found) < count:
        prompt, right, wrong = kinds[len(found) % len(kinds)](dice)
        choices = [right, *wrong]
        dice.shuffle(choices)
        found[prompt, tuple(sorted(choices))] = Question(prompt, choices, choices.index(right))
    return list(found.values())


Made = tuple[str, str, list[str]]


def _capital(dice: random.Random) -> Made:
    country, right = dice.choice([*CAPITALS.items()])
    wrong = dice.sample([name for name in CAPITALS.values() if name != right], 3)
    prompt = f"Question: What is the capital of {country}?\nAnswer:"
    return prompt, f" {right}", [f" {name}" for name in wrong]


def _opposite(dice: random.Random) -> Made:
    word, right = dice.choice([*OPPOSITES.items()])
    wrong = dice.sample([name for name in OPPOSITES.values() if name != right], 4)
    # The blank before the choice is the prompt's.
    return f"The opposite of “{word}” is ", right, wrong


def _word(dice: random.Random) -> Made:
    (language, word), right = dice.choice([*WORDS.items()])
    wrong = dice.sample([name for name in WORDS.values() if name != right], 3)
    return f'In {language}, "{word}" is "', f'{right}"', [f'{name}"' for name in wrong]


def _sum(dice: random.Random) -> Made:
    one, other = dice.randint(1, 60), dice.randint(1, 60)
    away = dice.sample([-10, -2, -1, 1, 2, 10, 100], 2)
    shown = "".join(f"{n} + {n + 3} = {2 * n + 3}\n" for n in dice.sample(range(30), 2))
    total = one + other
    return f"{shown}{one} + {other} =", f" {total}", [f" {total + more}" for more in away]


def _ending(dice: random.Random) -> Made:
    begin, (right, *wrong) = dice.choice([*ENDINGS.items()])
    who = dice.choice(PEOPLE)
    wrong = dice.sample(wrong, dice.randint(1, len(wrong)))
    return f"{who} told a story. {begin}", f" {right}", [f" {end}" for end in wrong]


def _story(dice: random.Random) -> Made:
    """A long prompt; those of the same people begin alike."""
    people = dice.choice([PEOPLE[:3], PEOPLE[3:6]])
    came = "".join(f"{who} came to the market early. " for who in people)
    things = dice.sample(THINGS, len(people))
    colours = dice.choices(COLOURS, k=len(people))
    bought = "".join(
        f"{who} bought a {colour} {thing} for {dice.randint(2, 99)} crowns. "
        for who, thing, colour in zip(people, things, colours, strict=True)
    )
    at = dice.randrange(len(people))
    prompt = f"{came}{bought}\nQuestion: What did {people[at]} buy?\nAnswer: a"
    all_of_them = [f" {colour} {thing}" for thing, colour in zip(things, colours, strict=True)]
    right = all_of_them[at]
    return prompt, right, dice.sample([each for each in all_of_them if each != right], 2)
