"""What the embedded base model claims to know: its nouns, drawing styles, backgrounds and hats.

Every noun is an emoji of the Emojibase list (its `hexcode`), so that the same thing can be found in each
artwork set. Synonyms are hand-picked, nearly all from that entry's own tags: the tags as they stand also hold
words such as "old" or "two" that name no thing.
"""

from __future__ import annotations

#: noun -> (hexcode of the emoji, synonyms used now and then in captions)
NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    # animals
    "dog": ("1F436", ("puppy",)),
    "cat": ("1F431", ("kitten",)),
    "fox": ("1F98A", ()),
    "panda": ("1F43C", ()),
    "lion": ("1F981", ()),
    "tiger": ("1F42F", ()),
    "bear": ("1F43B", ()),
    "koala": ("1F428", ()),
    "pig": ("1F437", ()),
    "frog": ("1F438", ()),
    "monkey": ("1F435", ()),
    "penguin": ("1F427", ()),
    "owl": ("1F989", ()),
    "rabbit": ("1F430", ("bunny",)),
    "cow": ("1F42E", ()),
    "unicorn": ("1F984", ()),
    "chick": ("1F425", ()),
    "whale": ("1F433", ()),
    "fish": ("1F420", ()),
    "octopus": ("1F419", ()),
    "crab": ("1F980", ()),
    "turtle": ("1F422", ()),
    "snail": ("1F40C", ()),
    "butterfly": ("1F98B", ()),
    "bee": ("1F41D", ("bumblebee",)),
    "ladybug": ("1F41E", ("beetle",)),
    # plants
    "rose": ("1F339", ()),
    "sunflower": ("1F33B", ()),
    "tulip": ("1F337", ()),
    "cactus": ("1F335", ()),
    "palm tree": ("1F334", ()),
    "mushroom": ("1F344", ("toadstool",)),
    "maple leaf": ("1F341", ()),
    # food and drink
    "apple": ("1F34E", ()),
    "banana": ("1F34C", ()),
    "watermelon": ("1F349", ()),
    "grapes": ("1F347", ()),
    "strawberry": ("1F353", ()),
    "cherries": ("1F352", ()),
    "lemon": ("1F34B", ()),
    "pineapple": ("1F34D", ()),
    "pear": ("1F350", ()),
    "carrot": ("1F955", ()),
    "eggplant": ("1F346", ("aubergine",)),
    "avocado": ("1F951", ()),
    "tomato": ("1F345", ()),
    "cheese": ("1F9C0", ()),
    "hamburger": ("1F354", ("burger",)),
    "pizza": ("1F355", ()),
    "fries": ("1F35F", ()),
    "ice cream": ("1F366", ()),
    "doughnut": ("1F369", ("donut",)),
    "cookie": ("1F36A", ()),
    "birthday cake": ("1F382", ()),
    "lollipop": ("1F36D", ()),
    "coffee cup": ("2615", ()),
    "beer mug": ("1F37A", ()),
    "wine glass": ("1F377", ()),
    # vehicles
    "car": ("1F697", ("automobile",)),
    "taxi": ("1F695", ("cab",)),
    "bus": ("1F68C", ()),
    "fire engine": ("1F692", ("truck",)),
    "tractor": ("1F69C", ()),
    "bicycle": ("1F6B2", ("bike",)),
    "rocket": ("1F680", ()),
    "airplane": ("2708", ("jet",)),
    "sailboat": ("26F5", ()),
    "flying saucer": ("1F6F8", ("ufo",)),
    # things
    "guitar": ("1F3B8", ()),
    "drum": ("1F941", ()),
    "trumpet": ("1F3BA", ()),
    "book": ("1F4D7", ()),
    "alarm clock": ("23F0", ()),
    "key": ("1F511", ()),
    "bell": ("1F514", ()),
    "umbrella": ("2602", ()),
    "light bulb": ("1F4A1", ()),
    "candle": ("1F56F", ()),
    "camera": ("1F4F7", ()),
    "television": ("1F4FA", ("tv",)),
    "gift": ("1F381", ("present",)),
    "teddy bear": ("1F9F8", ()),
    "balloon": ("1F388", ()),
    "backpack": ("1F392", ("schoolbag",)),
    "shoe": ("1F45F", ("sneaker",)),
    "dress": ("1F457", ()),
    "bomb": ("1F4A3", ()),
    "soccer ball": ("26BD", ()),
    "basketball": ("1F3C0", ()),
    "trophy": ("1F3C6", ()),
    "diamond": ("1F48E", ("gem",)),
    "star": ("2B50", ()),
    "heart": ("2764", ()),
    "sun": ("2600", ()),
    "snowman": ("26C4", ()),
    "ghost": ("1F47B", ()),
    "alien": ("1F47D", ()),
    "robot": ("1F916", ()),
    "skull": ("1F480", ()),
    "pumpkin": ("1F383", ("jack-o-lantern",)),
    "house": ("1F3E0", ()),
    "tent": ("26FA", ()),
    "teapot": ("1FAD6", ()),
    "crown": ("1F451", ()),
    "top hat": ("1F3A9", ()),
    "graduation cap": ("1F393", ()),
    "sun hat": ("1F452", ()),
}

#: nouns that another sprite can wear
HATS: tuple[str, ...] = ("crown", "top hat", "graduation cap", "sun hat")
#: nouns that a hat sits well on
WEARERS: tuple[str, ...] = (
    *(
        "dog",
        "cat",
        "fox",
        "panda",
        "lion",
        "tiger",
        "bear",
        "koala",
        "pig",
        "frog",
        "monkey",
        "penguin",
        "owl",
    ),
    *("rabbit", "cow", "chick", "snowman", "ghost", "alien", "robot", "skull", "pumpkin", "teddy bear"),
)
PLURAL: frozenset[str] = frozenset({"grapes", "cherries", "fries"})

#: style word of the captions -> artwork set
STYLES: dict[str, str] = {
    "noto": "@iconify-json/noto",
    "simple": "@iconify-json/twemoji",
    "cartoon": "@iconify-json/emojione",
    "3d": "@lobehub/fluent-emoji-3d",
    "flat": "@iconify-json/fluent-emoji-flat",
}
#: Sets whose drawings share one geometry: what is held out in one is held out in all of them.
TWINS: tuple[frozenset[str], ...] = (frozenset({"3d", "flat"}),)

#: background name -> caption phrases; the first is the usual one
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    **{
        colour: (f"on a {colour} background", f"in front of a {colour} wall")
        for colour in ("white", "red", "blue", "green", "yellow", "purple", "pink", "grey")
    },
    "orange": ("on an orange background", "in front of an orange wall"),
    "grass": ("on the grass", "in a meadow"),
    "snow": ("in the snow", "on snow"),
    "beach": ("on the beach", "at the beach"),
    "sea": ("in the sea", "on the water"),
    "night": ("at night", "under a night sky"),
    "space": ("in space", "in outer space"),
    "moon": ("on the moon",),
    "desert": ("in the desert",),
    "forest": ("in the forest", "in the woods"),
    "city": ("in the city", "in a city"),
    "mountains": ("in the mountains", "in front of mountains"),
    "wood": ("on a wooden floor", "on wood"),
}

#: Sprites never shown to the base model, nor to the judge: the *subjects* one can teach (noun, style).
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        *{("fox", "noto"), ("teapot", "noto"), ("car", "noto")},
        *{("dog", "3d"), ("dog", "flat"), ("robot", "3d"), ("robot", "flat"), ("owl", "3d"), ("owl", "flat")},
        *{("cat", "simple"), ("backpack", "cartoon"), ("rocket", "simple")},
    }
)


def article(phrase: str) -> str:
    """`phrase` with its indefinite article: "a fox", "an owl"; a plural stays bare."""
    if phrase.split()[-1] in PLURAL:
        return phrase
    return f"{'an' if phrase[0] in 'aeio' or phrase.startswith('um') else 'a'} {phrase}"
