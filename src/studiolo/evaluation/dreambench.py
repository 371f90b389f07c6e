"""The paper's benchmark as data: 30 subjects and two lists of 25 prompts.

From the DreamBooth dataset, https://github.com/google/dreambooth (dataset/prompts_and_classes.txt), by
Nataniel Ruiz, Yuanzhen Li, Varun Jampani, Yael Pritch, Michael Rubinstein and Kfir Aberman, under CC-BY-4.0
(https://creativecommons.org/licenses/by/4.0/). Changed: the places of the token and of the class are written
[V] and {class_noun}. Its photographs are not part of Studiolo.
"""

from __future__ import annotations

from dataclasses import dataclass

from studiolo.dreambooth.recipe import fill

CLASS_NOUNS: dict[str, str] = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
"""Name of a subject's folder -> its class."""

LIVE_CLASSES = ("cat", "dog")

OBJECT_PROMPTS = (
    "a [V] {class_noun} in the jungle",
    "a [V] {class_noun} in the snow",
    "a [V] {class_noun} on the beach",
    "a [V] {class_noun} on a cobblestone street",
    "a [V] {class_noun} on top of pink fabric",
    "a [V] {class_noun} on top of a wooden floor",
    "a [V] {class_noun} with a city in the background",
    "a [V] {class_noun} with a mountain in the background",
    "a [V] {class_noun} with a blue house in the background",
    "a [V] {class_noun} on top of a purple rug in a forest",
    "a [V] {class_noun} with a wheat field in the background",
    "a [V] {class_noun} with a tree and autumn leaves in the background",
    "a [V] {class_noun} with the Eiffel Tower in the background",
    "a [V] {class_noun} floating on top of water",
    "a [V] {class_noun} floating in an ocean of milk",
    "a [V] {class_noun} on top of green grass with sunflowers around it",
    "a [V] {class_noun} on top of a mirror",
    "a [V] {class_noun} on top of the sidewalk in a crowded street",
    "a [V] {class_noun} on top of a dirt road",
    "a [V] {class_noun} on top of a white rug",
    "a red [V] {class_noun}",
    "a purple [V] {class_noun}",
    "a shiny [V] {class_noun}",
    "a wet [V] {class_noun}",
    "a cube shaped [V] {class_noun}",
)

LIVE_PROMPTS = (
    "a [V] {class_noun} in the jungle",
    "a [V] {class_noun} in the snow",
    "a [V] {class_noun} on the beach",
    "a [V] {class_noun} on a cobblestone street",
    "a [V] {class_noun} on top of pink fabric",
    "a [V] {class_noun} on top of a wooden floor",
    "a [V] {class_noun} with a city in the background",
    "a [V] {class_noun} with a mountain in the background",
    "a [V] {class_noun} with a blue house in the background",
    "a [V] {class_noun} on top of a purple rug in a forest",
    "a [V] {class_noun} wearing a red hat",
    "a [V] {class_noun} wearing a santa hat",
    "a [V] {class_noun} wearing a rainbow scarf",
    "a [V] {class_noun} wearing a black top hat and a monocle",
    "a [V] {class_noun} in a chef outfit",
    "a [V] {class_noun} in a firefighter outfit",
    "a [V] {class_noun} in a police outfit",
    "a [V] {class_noun} wearing pink glasses",
    "a [V] {class_noun} wearing a yellow shirt",
    "a [V] {class_noun} in a purple wizard outfit",
    "a red [V] {class_noun}",
    "a purple [V] {class_noun}",
    "a shiny [V] {class_noun}",
    "a wet [V] {class_noun}",
    "a cube shaped [V] {class_noun}",
)


def prompts_for(class_noun: str) -> tuple[str, ...]:
    """The 25 prompts for a subject of that class, with [V] and {class_noun} in their places."""
    return LIVE_PROMPTS if class_noun in LIVE_CLASSES else OBJECT_PROMPTS


def plain(prompt: str, class_noun: str) -> str:
    """A prompt as CLIP is to read it: with the class, without a word for the subject."""
    return fill(prompt.replace("[V] ", ""), class_noun)


@dataclass(frozen=True)
class Published:
    """A line of the paper's tables 1 and 3 (Ruiz et al. 2023): 30 subjects x 25 prompts x 4 pictures."""

    method: str
    dino: float | None = None
    clip_i: float | None = None
    clip_t: float | None = None
    pres: float | None = None
    div: float | None = None


PUBLISHED = (
    Published("real images", 0.774, 0.885),
    Published("DreamBooth, Imagen", 0.696, 0.812, 0.306),
    Published("DreamBooth, Stable Diffusion", 0.668, 0.803, 0.305),
    Published("Textual Inversion, Stable Diffusion", 0.569, 0.780, 0.255),
    Published("DreamBooth, Imagen, with the prior loss", pres=0.493, div=0.391),
    Published("DreamBooth, Imagen, without the prior loss", pres=0.664, div=0.371),
)
