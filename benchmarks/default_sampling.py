"""How should the small model draw its tokens where a request does not say?

    python benchmarks/default_sampling.py

Asks the thirty questions below under each setting, as often as --seeds says, and prints how many answers hold
the word that they should, how many go round in circles, and how many begin in French or Spanish, which this
model likes to do.
"""

from __future__ import annotations

import argparse
import asyncio
import re

from studiolo.language import DEFAULT_MODEL
from studiolo.language.collect import collected
from studiolo.language.conversation import GenerationConfig, Request, user
from studiolo.language.engines.base import Engine
from studiolo.language.opening import close_all, engine

QUESTIONS = {
    "What is the capital of France?": "paris",
    "What is the capital of Japan?": "tokyo",
    "Who wrote Romeo and Juliet?": "shakespeare",
    "What is 2 + 2?": "4|four",
    "What colour is the sky on a clear day?": "blue",
    "How many days are in a week?": "7|seven",
    "What is the largest planet?": "jupiter",
    "What do bees make?": "honey",
    "Which animal says meow?": "cat",
    "What is the opposite of hot?": "cold|cool",
    "What is H2O?": "water",
    "Name three fruits.": "apple|banana|orange",
    "Who painted the Mona Lisa?": "leonardo|vinci",
    "In which country is Rome?": "italy",
    "What language is spoken in Brazil?": "portuguese",
    "What is the first month of the year?": "january",
    "How many legs does a spider have?": "8|eight",
    "What is the chemical symbol of gold?": "au",
    "Who was the first person on the moon?": "armstrong",
    "What is frozen water called?": "ice",
    "Say hello.": "hello|hi",
    "Translate 'thank you' to French.": "merci",
    "Write a haiku about rain.": "rain",
    "Explain photosynthesis in one sentence.": "light|sun",
    "What is the boiling point of water in Celsius?": "100",
    "Why is the sky blue?": "scatter|light",
    "What is the capital of Germany?": "berlin",
    "Which planet is known as the red planet?": "mars",
    "What is 17 * 23?": "391",
    "Give me a name for a black cat.": "[a-z]{3}",
}
SYSTEMS = {"template's own": None, "helpful": "You are a helpful assistant."}
SETTINGS = (
    GenerationConfig(temperature=1, top_p=1, frequency_penalty=0),
    GenerationConfig(temperature=0, frequency_penalty=0),
    GenerationConfig(temperature=0, frequency_penalty=0.3),
    GenerationConfig(temperature=0.2, top_p=0.9, frequency_penalty=0),
    GenerationConfig(temperature=0.2, top_p=0.9, frequency_penalty=0.3),
)
FOREIGN = re.compile(r"(La|Le|Les|L'\w+|El|Al\w+|Une?|Mon) ")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    asyncio.run(table(options.model, options.seeds))


async def table(model: str, seeds: int) -> None:
    opened = await engine(model)
    print("| system text | temperature | top-p | frequency penalty | right | in circles | not English |")
    print("|---|---|---|---|---|---|---|")
    for name, system in SYSTEMS.items():
        for config in SETTINGS:
            answers: list[str] = []
            for seed in range(seeds):
                seeded = config.model_copy(update={"seed": seed})
                answers += await asyncio.gather(*(answer(opened, each, system, seeded) for each in QUESTIONS))
            words = list(QUESTIONS.values()) * seeds
            right = sum(
                bool(re.search(word, text.lower())) for word, text in zip(words, answers, strict=True)
            )
            shares = (right, sum(map(circles, answers)), sum(bool(FOREIGN.match(text)) for text in answers))
            told = " | ".join(f"{share / len(answers):.0%}" for share in shares)
            top_p = config.top_p or 1
            print(
                f"| {name} | {config.temperature:g} | {top_p:g} | {config.frequency_penalty:g} | {told} |",
                flush=True,
            )
    await close_all()


async def answer(opened: Engine, question: str, system: str | None, config: GenerationConfig) -> str:
    config = config.model_copy(update={"max_tokens": 64})
    request = Request(model=opened.model, contents=(user(question),), system=system, config=config)
    return (await collected(opened.generate(request))).text


def circles(text: str) -> bool:
    """Whether three words in a row come again and again."""
    words = text.split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(threes) > 18 and len(set(threes)) < 0.6 * len(threes)


if __name__ == "__main__":
    main()
