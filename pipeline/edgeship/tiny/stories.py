"""Short stories put together from sentences: a hero, a place, a thing, a trouble, a friend and a good end."""

from __future__ import annotations

import random

from edgeship.tiny.words import NAMES, listed

HEROES = listed("dog, cat, fox, bear, rabbit, mouse, duck, frog, horse, owl, lion, robot, bird, cow")
PLACES = listed("""near the river, in the forest, on a farm, by the sea, in a small town, on a green hill, in the
garden""")
TRAITS = listed("little, brave, young, happy, clever, kind, shy, grey, brown, white")
THINGS = listed("""red ball, shiny key, big book, golden star, blue hat, small boat, old map, silver bell, warm coat,
green kite, round stone, wooden box""")
FINDS = listed("under a tree, on the road, behind the house, in the tall grass, next to the old bridge, on the beach")
FOODS = listed("apples, bread, honey, carrots, cake, soup, berries, cheese")
WEATHER = listed("""The sun was warm., The sky was blue., It was a cold day., It was raining., The wind was strong.,
There was snow on the ground., The birds were singing.""")
MORNINGS = listed("One day, One morning, One evening, One summer day, One winter day")
GAMES = listed("""played by the water, ran up the hill, sang a song, looked at the stars, danced in the rain, told
each other stories, built a small house""")
ENDINGS = (
    "They were happy ever after.",
    "From that day on, they were best friends.",
    "Everybody was happy.",
    "Then it was time to sleep.",
    "They went home and slept well.",
    "That was a good day.",
)


def article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def story(rng: random.Random, hero: str | None = None) -> str:
    """A story of six to ten sentences; `hero` is one of HEROES."""
    hero = hero or rng.choice(HEROES)
    friend = rng.choice([h for h in HEROES if h != hero])
    name, other = rng.sample(NAMES, 2)
    place, trait = rng.choice(PLACES), rng.choice(TRAITS)
    start = f"Once upon a time there was {article(trait)} {hero} called {name}. {name} lived {place}. "
    plot = rng.choice((_lost, _found, _hungry, _alone, _storm, _learn))
    return start + plot(rng, name, hero, other, friend) + " " + rng.choice(ENDINGS)


def _meet(rng: random.Random, other: str, friend: str) -> str:
    kind = rng.choice(TRAITS)
    return rng.choice(
        (
            f"Then {article(kind)} {friend} called {other} came along.",
            f"On the way it met {article(kind)} {friend} called {other}.",
        )
    )


def _found(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    thing, place = rng.choice(THINGS), rng.choice(FINDS)
    return (
        f"{rng.choice(MORNINGS)}, {name} found {article(thing)} {place}. {rng.choice(WEATHER)} "
        f'"What a nice {thing}!" said {name}. {_meet(rng, other, friend)} "That is my {thing}," said {other}. '
        f"{name} gave the {thing} back. {other} said thank you. Then {name} and {other} {rng.choice(GAMES)}."
    )


def _lost(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    thing, place = rng.choice(THINGS), rng.choice(FINDS)
    return (
        f"{name} had {article(thing)}. {rng.choice(MORNINGS)}, the {thing} was gone. {name} was sad. "
        f'{_meet(rng, other, friend)} "Why are you sad?" asked {other}. "I lost my {thing}," said {name}. '
        f"{name} and {other} looked for it. They found the {thing} {place}. The {hero} was happy again."
    )


def _hungry(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    food = rng.choice(FOODS)
    return (
        f"{rng.choice(MORNINGS)}, {name} was very hungry. {rng.choice(WEATHER)} The {hero} wanted to eat {food}. "
        f'{_meet(rng, other, friend)} "I am hungry," said {name}. "I have {food} at home," said {other}. '
        f"They went to the house of {other} and ate {food}. After that they {rng.choice(GAMES)}."
    )


def _alone(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    return (
        f"{name} had no friends and was often alone. {rng.choice(MORNINGS)}, the {hero} went for a walk. "
        f'{rng.choice(WEATHER)} {_meet(rng, other, friend)} "Do you want to play?" asked {other}. '
        f'"Yes, I do!" said {name}. The {hero} and the {friend} {rng.choice(GAMES)}. Now {name} had a friend.'
    )


def _storm(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    return (
        f"{rng.choice(MORNINGS)}, there was a big storm. The {hero} was afraid. {name} ran and ran, and could not find "
        f'the way home. {_meet(rng, other, friend)} "Come to my house," said {other}. "It is warm and dry." '
        f"{name} stayed there until the storm was over. Then {other} showed {name} the way home."
    )


def _learn(rng: random.Random, name: str, hero: str, other: str, friend: str) -> str:
    skill = rng.choice(("swim", "sing", "read", "count", "dance", "write", "climb"))
    return (
        f"{name} wanted to learn how to {skill}. {rng.choice(MORNINGS)}, the {hero} tried and tried, but it was hard. "
        f'{_meet(rng, other, friend)} "Can you help me?" asked {name}. "Yes, I can {skill}," said {other}. '
        f"{other} helped {name} every day. Soon {name} could {skill} very well."
    )
