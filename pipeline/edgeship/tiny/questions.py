"""Every question the tiny model can be asked, with its answer: a finite pool, in a fixed order.

A question is held out of training by a hash of its words, but never the first wording of a fact: what is
held out is another way to ask for something that was learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from edgeship.tiny import words

Split = Literal["train", "held-out"]

HELD_OUT_SHARE = 16
"""One in this many is held out."""


@dataclass(frozen=True)
class Question:
    """One question: `follow` asks the same in short, right after one of the same kind ("": it cannot)."""

    kind: str
    ask: str
    follow: str
    answer: str
    split: Split


def split_of(text: str) -> Split:
    """The side of the split that a text falls on, by its SHA-256."""
    return "held-out" if hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0 else "train"


@cache
def questions() -> tuple[Question, ...]:
    """The whole pool; the same wording never appears twice."""
    seen: set[str] = set()
    out = []
    for question in _all():
        if question.ask not in seen:
            seen.add(question.ask)
            out.append(question)
    return tuple(out)


@cache
def by_kind(split: Split) -> Mapping[str, tuple[Question, ...]]:
    """The questions of one side of the split, by kind."""
    out: dict[str, list[Question]] = {}
    for question in questions():
        if question.split == split:
            out.setdefault(question.kind, []).append(question)
    return {kind: tuple(of_kind) for kind, of_kind in out.items()}


def _facts(kind: str, answer: str, asks: tuple[str, ...], follows: tuple[str, ...] = ()) -> Iterator[Question]:
    for i, ask in enumerate(asks):
        follow = follows[i % len(follows)] if follows else ""
        yield Question(kind, _sentence(ask), follow, _sentence(answer), split_of(ask) if i else "train")


def _sentence(text: str) -> str:
    return text if text.startswith("edgeship") else text[:1].upper() + text[1:]


def _relation(
    kind: str, table: Mapping[str, str], answer: str, *asks: str, follows: tuple[str, ...] = ()
) -> Iterator[Question]:
    """Questions about each row of a table; {s} is its subject and {v} its value."""
    for s, v in table.items():

        def fill(text: str, s: str = s, v: str = v) -> str:
            return text.format(s=s, v=v)

        short = follows or ("And {s}?", "What about {s}?")
        yield from _facts(kind, fill(answer), tuple(map(fill, asks)), tuple(map(fill, short)))


def _all() -> Iterator[Question]:
    yield from _animals()
    yield from _things()
    yield from _language()
    yield from _calendar()
    yield from _spelling()
    yield from _arithmetic()
    yield from _counting()
    for kind, table in (("facts", words.FACTS), ("edge devices", words.EDGE_FACTS), ("manners", words.MANNERS)):
        for answer, *asks in table:
            yield from _facts(kind, answer, tuple(asks))


# One relation after another, like a table: its name, rows, answer and wordings.
# fmt: off
def _animals() -> Iterator[Question]:
    yield from _relation("sounds", words.SOUNDS, "{s} says {v}.", "What sound does {s} make?", "What does {s} say?",
                         "Which sound does {s} make?", "Tell me the sound of {s}.", "How does {s} sound?")
    yield from _relation("babies", words.BABIES, "The baby of {s} is {v}.", "What is the baby of {s} called?",
                         "What is the baby of {s}?", "What do you call the baby of {s}?", "Name the baby of {s}.")
    yield from _relation("homes", words.HOMES, "{s} lives {v}.", "Where does {s} live?", "Where is the home of {s}?",
                         "Where can I find {s}?", "In what place does {s} live?")
    yield from _relation("legs", words.LEGS, "{s} has {v}.", "How many legs does {s} have?", "How many legs has {s}?",
                         "Tell me how many legs {s} has.", "Count the legs of {s}.")
    yield from _relation("animals", words.ANIMAL_KINDS, "{s} is {v}.", "What kind of animal is {s}?",
                         "Which kind of animal is {s}?", "Tell me what kind of animal {s} is.")
    for answer, said in (("Yes, {s} can fly.", "yes"), ("No, {s} cannot fly.", "no")):
        table = {s: v for s, v in words.FLIERS.items() if v == said}
        yield from _relation("flying", table, answer, "Can {s} fly?", "Is {s} able to fly?",
                             "Do you think {s} can fly?")
    for i, small in enumerate(words.SIZES):
        for big in words.SIZES[i + 1 :]:
            yield from _facts("sizes", f"{big} is bigger than {small}.",
                              (f"Which is bigger, {small} or {big}?", f"Which is bigger, {big} or {small}?",
                               f"What is bigger, {small} or {big}?", f"What is bigger, {big} or {small}?"))
            yield from _facts("sizes", f"{small} is smaller than {big}.",
                              (f"Which is smaller, {small} or {big}?", f"Which is smaller, {big} or {small}?",
                               f"What is smaller, {small} or {big}?", f"What is smaller, {big} or {small}?"))


def _things() -> Iterator[Question]:
    yield from _relation("colours", words.COLOURS, "{s} is {v}.", "What colour is {s}?", "What color is {s}?",
                         "Which colour is {s}?", "Which colour does {s} have?", "Tell me the colour of {s}.",
                         "What is the colour of {s}?", "What is the color of {s}?")
    yield from _relation("capitals", words.CAPITALS, "The capital of {s} is {v}.", "What is the capital of {s}?",
                         "Which city is the capital of {s}?", "Tell me the capital of {s}.", "Name the capital of {s}.")
    yield from _relation("countries", {v: s for s, v in words.CAPITALS.items()}, "{s} is the capital of {v}.",
                         "Which country has the capital {s}?", "{s} is the capital of which country?",
                         "Of which country is {s} the capital?")
    yield from _relation("categories", words.CATEGORIES, "{s} is {v}.", "What is {s}?", "Tell me what {s} is.",
                         "What kind of thing is {s}?")
    classes = sorted(set(words.CATEGORIES.values()))
    for i, (thing, real) in enumerate(words.CATEGORIES.items()):
        wrong = [c for c in classes if c != real][i % (len(classes) - 1)]
        yield from _facts("yes or no", f"Yes, {thing} is {real}.",
                          (f"Is {thing} {real}?", f"Do you think {thing} is {real}?"))
        yield from _facts("yes or no", f"No, {thing} is {real}.",
                          (f"Is {thing} {wrong}?", f"Do you think {thing} is {wrong}?"))
    yield from _relation("uses", words.USES, "You use {s} {v}.", "What is {s} for?", "What do you use {s} for?",
                         "What can I do with {s}?", "Why do I need {s}?")
    yield from _relation("jobs", words.JOBS, "{s} {v}.", "What does {s} do?", "What is the job of {s}?",
                         "Tell me what {s} does.", "What is the work of {s}?")
    yield from _relation("workers", {v: s for s, v in words.JOBS.items()}, "{v} {s}.", "Who {s}?", "Tell me who {s}.",
                         "Which person {s}?", follows=("And who {s}?",))
    yield from _relation("shapes", words.SHAPES, "{s} has {v}.", "How many sides does {s} have?",
                         "How many sides has {s}?", "Tell me how many sides {s} has.")
    yield from _relation("lists", words.LISTS, "Three {s} are {v}.", "Name three {s}.", "Tell me three {s}.",
                         "Give me three {s}.", "List three {s}.", "Can you name three {s}?")


def _language() -> Iterator[Question]:
    both = words.OPPOSITES | {v: s for s, v in words.OPPOSITES.items()}
    yield from _relation("opposites", both, "The opposite of {s} is {v}.", "What is the opposite of {s}?",
                         "Tell me the opposite of {s}.", "Which word is the opposite of {s}?", "Opposite of {s}?",
                         "What is the contrary of {s}?")
    yield from _relation("plurals", words.PLURALS, "The plural of {s} is {v}.", "What is the plural of {s}?",
                         "Tell me the plural of {s}.", "One {s}, two what?", "Plural of {s}?")
    yield from _relation("past", words.PASTS, "The past tense of {s} is {v}.", "What is the past tense of {s}?",
                         "Tell me the past tense of {s}.", "Which word is the past tense of {s}?", "Past tense of {s}?")


def _order(kind: str, noun: str, names: tuple[str, ...], ring: bool,
           *, comes: str = "What {n} comes {w} {s}?") -> Iterator[Question]:
    """What comes before and after each of an ordered list of names."""
    for i, name in enumerate(names):
        for step, word in ((1, "after"), (-1, "before")):
            j = i + step
            if not ring and not 0 <= j < len(names):
                continue
            other = names[j % len(names)]
            asks = (comes, "Which {n} comes {w} {s}?", "Which {n} is {w} {s}?", "What is the {n} {w} {s}?")
            yield from _facts(f"{kind} {word}", f"{other} comes {word} {name}.",
                              tuple(ask.format(n=noun, w=word, s=name) for ask in asks),
                              (f"And {word} {name}?", f"What about {word} {name}?"))


def _calendar() -> Iterator[Question]:
    yield from _order("days", "day", words.DAYS, ring=True)
    yield from _order("months", "month", words.MONTHS, ring=True)
    yield from _order("seasons", "season", words.SEASONS, ring=True)
    months = {m: str(d) for m, d in zip(words.MONTHS, words.MONTH_DAYS, strict=True)}
    yield from _relation("month days", months, "{s} has {v} days.", "How many days does {s} have?",
                         "How many days are in {s}?", "How many days has {s}?", "How long is {s}?")
    numbered = dict(zip(words.ORDINALS, words.MONTHS, strict=True))
    yield from _relation("months", numbered, "The {s} month is {v}.", "What is the {s} month?",
                         "Which month is the {s}?",
                         "What is the {s} month of the year?", "Name the {s} month.",
                         follows=("And the {s}?", "What about the {s}?"))
    yield from _facts("calendar", f"The days are {_listed(words.DAYS)}.",
                      ("What are the days of the week?", "Name the days of the week.", "List the days of the week."))
    yield from _facts("calendar", f"The months are {_listed(words.MONTHS)}.",
                      ("What are the months of the year?", "Name the months of the year.", "List the months."))
    yield from _facts("calendar", f"The seasons are {_listed(words.SEASONS)}.",
                      ("What are the seasons?", "Name the four seasons.", "List the seasons."))


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _spelling() -> Iterator[Question]:
    letters = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    yield from _order("letters", "letter", letters, ring=False)
    yield from _relation("capital letters", {c.lower(): c for c in letters}, "The capital letter of {s} is {v}.",
                         "What is the capital letter of {s}?", "Write the letter {s} as a capital letter.")
    spelled = {w: w for w in words.SPELLED}
    loud = {w: w.upper() for w in spelled}
    yield from _relation("capital words", loud, "{v}", "Write {s} in capital letters.",
                         "Write the word {s} in capitals.",
                         "Write {s} with capital letters.", "Put the word {s} in capital letters.",
                         follows=("And {s}?", "Now {s}."))
    apart = {w: "-".join(w) for w in spelled}
    yield from _relation("spelling", apart, "You spell it {v}.", "How do you spell {s}?", "Spell the word {s}.",
                         "Spell {s}.", "Can you spell {s}?")
    first = {w: w[0].upper() for w in spelled}
    yield from _relation("first letters", first, "The first letter of {s} is {v}.", "What is the first letter of {s}?",
                         "Which letter does {s} start with?", "With which letter does {s} begin?")


def _arithmetic() -> Iterator[Question]:
    for a in range(21):
        for b in range(21):
            yield from _facts("addition", f"{a} + {b} = {a + b}.",
                              (f"What is {a} + {b}?", f"What is {a} plus {b}?", f"How much is {a} + {b}?",
                               f"{a} + {b} = ?", f"What is {a}+{b}?", f"{a}+{b}", f"Add {a} and {b}."),
                              (f"And {a} + {b}?", f"What about {a} + {b}?"))
            if b <= a:
                yield from _facts("subtraction", f"{a} - {b} = {a - b}.",
                                  (f"What is {a} - {b}?", f"What is {a} minus {b}?", f"How much is {a} - {b}?",
                                   f"{a} - {b} = ?", f"What is {a}-{b}?", f"{a}-{b}"),
                                  (f"And {a} - {b}?", f"What about {a} - {b}?"))
            if a <= 10 and b <= 10:
                yield from _facts("multiplication", f"{a} x {b} = {a * b}.",
                                  (f"What is {a} times {b}?", f"What is {a} x {b}?", f"How much is {a} times {b}?",
                                   f"{a} x {b} = ?", f"What is {a}*{b}?", f"Multiply {a} by {b}."),
                                  (f"And {a} times {b}?", f"And {a} x {b}?"))
    doubles = {str(n): str(2 * n) for n in range(21)}
    yield from _relation("doubles", doubles, "The double of {s} is {v}.", "What is the double of {s}?", "Double {s}.",
                         "What is twice {s}?")
    yield from _relation("halves", {v: s for s, v in doubles.items()}, "Half of {s} is {v}.", "What is half of {s}?",
                         "How much is half of {s}?", "Tell me half of {s}.")


def _counting() -> Iterator[Question]:
    named = {str(i): name for i, name in enumerate(words.NUMBERS)}
    yield from _relation("number words", named, "{s} is {v}.", "Write {s} as a word.",
                         "How do you write {s} as a word?",
                         "What is the word for {s}?")
    yield from _relation("numbers", {v: s for s, v in named.items()}, "{s} is {v}.", "Write {s} as a number.",
                         "Which number is {s}?", "What number is {s}?")
    numbers = tuple(map(str, range(51)))
    yield from _order("numbers", "number", numbers, ring=False, comes="What comes {w} {s}?")
    for a in range(13):
        for b in range(a + 2, min(a + 13, 21)):
            run = list(map(str, range(a, b + 1)))
            yield from _facts("counting", ", ".join(run) + ".",
                              (f"Count from {a} to {b}.", f"Please count from {a} to {b}.",
                               f"Can you count from {a} to {b}?") + ((f"Count to {b}.",) if a == 1 else ()))
            yield from _facts("counting down", ", ".join(run[::-1]) + ".",
                              (f"Count down from {b} to {a}.", f"Count backwards from {b} to {a}."))
    for a in range(21):
        for b in range(21):
            if a != b:
                yield from _facts("bigger numbers", f"{max(a, b)} is bigger than {min(a, b)}.",
                                  (f"Which is bigger, {a} or {b}?", f"Which number is bigger, {a} or {b}?",
                                   f"What is more, {a} or {b}?"))
# fmt: on
