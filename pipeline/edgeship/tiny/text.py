"""The tiny model's training text: chats in ChatML and plain stories, generated from a seed.

`samples(seed, split)` never ends; the same seed gives the same text. Both sides of the split come from the same
generator: questions are divided by a hash of their words (see questions.py), made-up texts by a hash of the text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import jinja2

from edgeship.tiny import words
from edgeship.tiny.questions import Question, Split, by_kind, split_of
from edgeship.tiny.stories import HEROES, article, story

DEFAULT_SYSTEM = "You are a tiny model made by edgeship. You answer in short sentences."
IDENTITY = "I am the tiny model of edgeship."
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML with Qwen2.5's conventions for tools; messages without a system prompt get the default one.
CHAT_TEMPLATE = """\
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
{%- else %}
    {%- set system = 'DEFAULT_SYSTEM' %}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + system + '\\n\\n# Tools\\n\\nYou can call these functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nCall one with a JSON object between <tool_call> and </tool_call>.<|im_end|>\\n' }}
{%- elif system %}
    {{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + arguments + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".replace("DEFAULT_SYSTEM", DEFAULT_SYSTEM)

Message = dict[str, Any]
Turn = tuple[str, str]  # what the user says, what the model answers


@cache
def _template() -> jinja2.Template:
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return env.from_string(CHAT_TEMPLATE)


def chatml(messages: Sequence[Message], tools: Sequence[Message] | None = None, *, prompt: bool = False) -> str:
    """The messages through the chat template; `prompt` ends them where the model is to answer."""
    return _template().render(messages=list(messages), tools=tools, add_generation_prompt=prompt)


def samples(seed: int, split: Split) -> Iterator[str]:
    """Training texts without end: chats ending in `<|im_end|>` and a newline, plain texts in `<|endoftext|>`."""
    rng = random.Random(f"{seed} {split}")
    while True:
        kind = rng.random()
        if kind < 0.16:
            yield _fresh(rng, split, story) + END_OF_TEXT
        elif kind < 0.2:
            yield _statements(rng, split) + END_OF_TEXT
        elif kind < 0.23:
            yield _tool_chat(rng, split)
        else:
            yield _chat(rng, split)


def _fresh(rng: random.Random, split: Split, make: Callable[[random.Random], str]) -> str:
    """A made-up text that falls on this side of the split."""
    while split_of(text := make(rng)) != split:
        pass
    return text


def question(rng: random.Random, split: Split, kind: str | None = None) -> Question:
    """A question of this side of the split; large kinds are asked more often, by the square root of their size."""
    pool = by_kind(split)
    if kind is None:
        kind = rng.choices(list(pool), [len(of_kind) ** 0.5 for of_kind in pool.values()])[0]
    return rng.choice(pool[kind])


def _statements(rng: random.Random, split: Split) -> str:
    """Plain sentences: the answers to a few questions."""
    return " ".join(question(rng, split).answer for _ in range(rng.randint(2, 6)))


def _chat(rng: random.Random, split: Split) -> str:
    system, name = _system(rng)
    turns: list[Turn] = []
    # A few chats are long, so that every position of the context is trained.
    wanted = rng.randint(15, 40) if rng.random() < 0.015 else rng.choice((1, 1, 1, 2, 2, 3, 4, 6))
    while len(turns) < wanted:
        turns += _turns(rng, split, name)
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    for user, answer in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return chatml(messages)


def _system(rng: random.Random) -> tuple[str | None, str | None]:
    """A system prompt (None: the template's own, "": none at all), and the name it gives to the model."""
    chance = rng.random()
    if chance < 0.45:
        return None, None
    if chance < 0.7:
        return "", None
    if chance < 0.85:
        return rng.choice(_SYSTEMS), None
    name = _name(rng)
    return f"You are {name}, a {rng.choice(('friendly', 'little', 'helpful'))} robot.", name


_SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer the question.", "You are a teacher.",
    "Be short.", "You answer questions and tell stories.",
)  # fmt: skip


def _turns(rng: random.Random, split: Split, name: str | None) -> list[Turn]:
    chance = rng.random()
    if name and chance < 0.3:
        return [(rng.choice(("Who are you?", "What is your name?")), f"I am {name}.")]
    if chance < 0.68:
        q = question(rng, split)
        return [_loosely(rng, q.ask, f"I am {name}." if name and q.answer == IDENTITY else q.answer)]
    if chance < 0.8:
        return _followed(rng, split)
    if chance < 0.86:
        return _told(rng)
    if chance < 0.9:
        return [_unknown(rng)]
    if chance < 0.96:
        return [_copied(rng)]
    return [_story_turn(rng, split)]


def _asked(q: Question) -> Turn:
    return q.ask, q.answer


def _loosely(rng: random.Random, user: str, answer: str) -> Turn:
    """The question as people also type it: polite, in lower case, without its last mark."""
    chance = rng.random()
    if chance < 0.06:
        user = user[:1].lower() + user[1:]
    elif chance < 0.1:
        user = user.rstrip("?.! =")
    elif chance < 0.14:
        user = user[:1].lower() + user[1:].rstrip("?.! =")
    elif chance < 0.18:
        user = user.replace("What is", "What's")
    elif chance < 0.22:
        user = rng.choice(("Please tell me: ", "Hello! ", "Question: ", "I want to know: ")) + user
    return user, answer


def _followed(rng: random.Random, split: Split) -> list[Turn]:
    """A question, then one or two of the same kind asked in short ("And a dog?")."""
    while not (first := question(rng, split)).follow:
        pass
    rest = [question(rng, split, first.kind) for _ in range(rng.choice((1, 1, 2)))]
    return [_asked(first), *((q.follow, q.answer) for q in rest)]


def _name(rng: random.Random) -> str:
    """A name, half of the time made up of syllables."""
    if rng.random() < 0.5:
        return rng.choice(words.NAMES)
    return _made_up(rng).capitalize()


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choices(words.NONSENSE, k=rng.choice((2, 2, 3))))


def _told(rng: random.Random) -> list[Turn]:
    """The user says something about themselves and asks for it afterwards."""
    name, city = _name(rng), rng.choice(words.CITIES)
    colour, thing = rng.choice(words.FAVOURITES), rng.choice(words.LIKES)
    pet, called = rng.choice(("dog", "cat", "horse", "bird")), _name(rng)
    told: list[tuple[Turn, Turn]] = [
        (
            (rng.choice((f"My name is {name}.", f"I am {name}.", f"Hello, my name is {name}.")), f"Hello {name}!"),
            (rng.choice(("What is my name?", "Who am I?", "Do you know my name?")), f"Your name is {name}."),
        ),
        ((f"I live in {city}.", f"{city} is a nice city."), ("Where do I live?", f"You live in {city}.")),
        ((f"My favourite colour is {colour}.", f"{colour.capitalize()} is a nice colour."),
         ("What is my favourite colour?", f"Your favourite colour is {colour}.")),
        ((f"I like {thing}.", "That is nice."), ("What do I like?", f"You like {thing}.")),
        ((f"My {pet} is called {called}.", f"{called} is a nice name for a {pet}."),
         (f"What is my {pet} called?", f"Your {pet} is called {called}.")),
    ]  # fmt: skip
    chosen = rng.sample(told, rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.1:
        return [(chosen[0][1][0], "You did not tell me.")]
    asked = rng.sample(chosen, len(chosen))
    return [said for said, _ in chosen] + [answer for _, answer in asked]


def _unknown(rng: random.Random) -> Turn:
    """Something the model was never told: it says so."""
    if rng.random() < 0.2:
        return rng.choice((
            (f"What is the weather in {rng.choice(words.CITIES)}?", "I cannot see the weather."),
            (rng.choice(("What time is it?", "What day is it today?")), "I have no clock."),
            (f"Turn {rng.choice(('on', 'off'))} the light in the {rng.choice(words.ROOMS)}.", "I cannot do that."),
        ))  # fmt: skip
    topic, made_up = rng.choice(words.UNKNOWN), _made_up(rng)
    if rng.random() < 0.3:
        thing = article(made_up)
        ask = rng.choice(("What is {t}?", "Tell me what {t} is.", "What does {t} do?", "What colour is {t}?"))
        return ask.format(t=thing), f"I do not know what {thing} is."
    if rng.random() < 0.5:
        topic = made_up.capitalize()
    return rng.choice(_UNKNOWN_ASKS).format(t=topic), f"I know nothing about {topic}."


_UNKNOWN_ASKS = (
    "Tell me about {t}.", "What do you think about {t}?", "Explain {t}.", "Write a poem about {t}.",
    "Can you explain {t}?", "Who invented {t}?", "What is the history of {t}?", "Write an essay about {t}.",
    "Who is {t}?", "How tall is {t}?", "When was {t} made?", "How old is {t}?", "What do you know about {t}?",
    "Who wrote {t}?",
)  # fmt: skip


def _copied(rng: random.Random) -> Turn:
    """Words said after the user."""
    word = rng.choice((*words.SPELLED, _made_up(rng)))
    if rng.random() < 0.4:
        times = rng.randint(2, 5)
        count = rng.choice((str(times), words.NUMBERS[times]))
        return f"{rng.choice(('Say', 'Repeat the word', 'Write'))} {word} {count} times.", " ".join([word] * times)
    phrase = " ".join(rng.choice((*words.SPELLED, _made_up(rng))) for _ in range(rng.randint(1, 6)))
    return rng.choice(("Repeat after me: ", "Say: ", "Copy this: ", "Echo: ")) + phrase, phrase


def _story_turn(rng: random.Random, split: Split) -> Turn:
    hero = rng.choice(HEROES)
    ask = rng.choice(("Tell me a story about {h}.", "Write a story about {h}.", "Can you tell me a story about {h}?"))
    if rng.random() < 0.3:
        ask = rng.choice(("Tell me a story.", "Write a short story.", "Can you tell me a story?"))
        return ask, _fresh(rng, split, story)
    return ask.format(h=article(hero)), _fresh(rng, split, lambda r: story(r, hero))


def _function(name: str, description: str, **parameters: str) -> Message:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = (
    _function("get_weather", "The weather in a city.", city="string"),
    _function("get_time", "The time in a city.", city="string"),
    _function("set_light", "Turns the light of a room on or off.", room="string", state="string"),
)
"""The functions that the model learned to call when a chat offers them."""


def _tool_chat(rng: random.Random, split: Split) -> str:
    """A chat that offers functions: a call, its result and the answer; or a question that needs none."""
    tools = rng.sample(TOOLS, rng.choice((1, 2, 3)))
    if rng.random() < 0.3:
        q = question(rng, split)
        return chatml([{"role": "user", "content": q.ask}, {"role": "assistant", "content": q.answer}], tools)
    name = tools[0]["function"]["name"]
    rng.shuffle(tools)
    ask, arguments, result, answer = _task(rng, name)
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages: list[Message] = [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": json.dumps(result)},
        {"role": "assistant", "content": answer},
    ]
    return chatml(messages, tools)


def _task(rng: random.Random, name: str) -> tuple[str, dict[str, Any], dict[str, Any], str]:
    """For a function: what the user asks, its arguments, its result and the answer."""
    city, room, state = rng.choice(tuple(words.CAPITALS.values())), rng.choice(words.ROOMS), rng.choice(("on", "off"))
    if name == "get_weather":
        sky, degrees = rng.choice(("sunny", "rainy", "cloudy", "windy", "snowy")), rng.randint(-9, 35)
        ask = rng.choice((f"What is the weather in {city}?", f"How is the weather in {city}?"))
        result = {"sky": sky, "degrees": degrees}
        return ask, {"city": city}, result, f"It is {sky} in {city}, with {degrees} degrees."
    if name == "get_time":
        clock = f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"
        ask = rng.choice((f"What time is it in {city}?", f"Tell me the time in {city}."))
        return ask, {"city": city}, {"time": clock}, f"It is {clock} in {city}."
    ask = rng.choice((f"Turn {state} the light in the {room}.", f"Please turn {state} the light in the {room}."))
    return ask, {"room": room, "state": state}, {"done": True}, f"The light in the {room} is {state}."
