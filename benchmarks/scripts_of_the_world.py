"""Do streams of many scripts come byte for byte as the text that was made, and cut only between letters?

    python benchmarks/scripts_of_the_world.py

Both local engines are made to write texts in 24 scripts (the constraint admits only that text; which tokens
they write it with is drawn), through the whole stack. What arrives is compared with the text, and every cut
with the grapheme clusters that the package regex finds (UAX 29). Half of the texts have a code fence, and
each is also written with a stop text in its middle.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
from measuring import arguments, table, weights

from studiolo.language.conversation import Format, FormatKind, GenerationConfig, Request, Text, user
from studiolo.language.engines.local import LocalEngine

TEXTS: dict[str, str] = {
    "Latin, composed": "Žluťoučký kůň úpěl ďábelské ódy; naïve façade, Þórr.",
    "Latin, combining marks": "Tie\u0302\u0301ng Vie\u0323\u0302t, e\u0301te\u0301, n\u0303, =\u0338.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· Ἄνθρωπος ᾧ.",
    "Cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. Ї ґ і\u0301",
    "Hebrew, pointed": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם (2026)",
    "Arabic, vowelled": "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ؛ صفحة \u0600١٢٣ abc",
    "Persian, non-joiners": "می\u200cخواهم کتاب\u200cها را به‌خوبی بخوانم.",
    "Devanagari": "क्षत्रिय, ज्ञान, स्त्री और हिन्दी में नमस्ते।",
    "Bengali": "আমি বাংলায় গান গাই, ক্ষুদ্র স্বপ্ন।",
    "Tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி ஸ்ரீ.",
    "Malayalam": "മലയാളം ക്ഷേത്രം ന്റെ അവന്\u200d.",
    "Sinhala": "ශ්\u200dරී ලංකාව සිංහල ක්\u200dෂ.",
    "Thai": "เป็นมนุษย์สุดประเสริฐ น้ำใจ กำลัง",
    "Lao": "ຂ້ອຍກິນແກ້ວໄດ້ ນ້ຳ",
    "Burmese": "ကျွန်တော် မြန်မာစကား ပြောတတ်ပါတယ်။",
    "Khmer": "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ",
    "Tibetan": "བོད་སྐད་ཀྱི་ཡི་གེ་སྒྲུབ།",
    "Georgian, Armenian": "ვეპხის ტყაოსანი. Բարեւ ձեզ։",
    "Ethiopic": "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "Chinese": "天地玄黃，宇宙洪荒。𠮷野家、葛󠄀城。",
    "Japanese": "いろはにほへと が か\u3099 カ\uff9e パピプペポ、東京。",
    "Hangul": "다람쥐 헌 쳇바퀴에 \u1112\u1161\u11ab\u1100\u1173\u11af 각",
    "Emoji": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 1️⃣ #️⃣ 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f ❤️‍🔥.",
    "Adlam, N'Ko, cuneiform": "𞤀𞤣𞤤𞤢𞤥 𞤆𞤵𞤤𞤢𞤪 ߒߞߏ ߟߊ߫ 𒀭𒈹",
}
FENCED = "{0}\n\n```python\n'{0}'\n```\n~~~~"
STOP = "'\n```\n~~~"
"""Of which the texts with fences have parts in other places."""
SLOTS = 8


def main() -> None:
    options = arguments(__doc__).parse_args()
    texts = dict(list(TEXTS.items())[:: 6 if options.quick else 1])
    asyncio.run(measured(weights(options.model), texts))


@dataclass(frozen=True)
class Stream:
    """What was to be written, and the pieces in which it came."""

    wanted: str
    pieces: Sequence[str]

    @property
    def identical(self) -> bool:
        return "".join(self.pieces).encode() == self.wanted.encode()

    @property
    def cuts_within_letters(self) -> int:
        ends, at = letter_ends("".join(self.pieces)), 0
        return sum((at := at + len(piece)) not in ends for piece in self.pieces)

    @property
    def cuts_within_fences(self) -> int:
        pairs = zip(self.pieces, self.pieces[1:], strict=False)
        return sum(one[-1] == other[0] and one[-1] in "`~" for one, other in pairs)


def letter_ends(text: str) -> set[int]:
    return {match.end() for match in regex.finditer(r"\X", text)}


async def streamed(engine: LocalEngine, text: str, *stop: str, seed: int = 1) -> Stream:
    """The engine made to write the text; up to the first `stop`, if there is one."""
    config = GenerationConfig(
        temperature=1.0, seed=seed, stop=stop, max_tokens=800,
        format=Format(kind=FormatKind.CHOICE, rule=(text,)),
    )  # fmt: skip
    request = Request(model=engine.model, contents=(user("Write."),), config=config)
    pieces = [delta.part.text async for delta in engine.generate(request) if isinstance(delta.part, Text)]
    wanted = min((text.partition(one)[0] for one in stop), key=len, default=text)
    return Stream(wanted, pieces)


async def measured(model: Path, texts: dict[str, str]) -> None:
    from studiolo.language.engines.llamacpp import LlamaCpp
    from studiolo.language.engines.transformers import TransformersCompleter

    with tempfile.TemporaryDirectory() as folder:
        tiny(Path(folder))
        engines = {
            "llama.cpp, SmolLM2": LocalEngine(await LlamaCpp.open(model, context=1024, slots=SLOTS)),
            "transformers, bytes": LocalEngine(TransformersCompleter(folder)),
        }
        rows = []
        for name, engine in engines.items():
            streams = await asyncio.gather(*(all_of(engine, text) for text in texts.values()))
            rows += [(script, name, *row(found)) for script, found in zip(texts, streams, strict=True)]
        for engine in engines.values():
            await engine.close()
    head = ["script", "engine", "streams", "pieces", "identical", "cut within letters", "cut within fences"]
    total = [sum(numbers) for numbers in list(zip(*rows, strict=True))[2:]]
    print(table(head, [*sorted(rows, key=lambda row: list(texts).index(row[0])), ("all", "both", *total)]))


async def all_of(engine: LocalEngine, text: str) -> list[Stream]:
    """The text alone, with fences, and up to a stop text."""
    middle = text[len(text) // 2 :]
    return [
        await streamed(engine, text),
        await streamed(engine, FENCED.format(text)),
        await streamed(engine, FENCED.format(text), STOP),
        await streamed(engine, text, middle[:2], "nowhere"),
    ]


def row(streams: Sequence[Stream]) -> tuple[object, ...]:
    return (
        len(streams),
        sum(len(stream.pieces) for stream in streams),
        sum(stream.identical for stream in streams),
        sum(stream.cuts_within_letters for stream in streams),
        sum(stream.cuts_within_fences for stream in streams),
    )


def tiny(folder: Path) -> None:
    """A model of random weights whose tokens are single bytes: the hardest for letters of several bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=260, num_hidden_layers=1, max_position_embeddings=2048,
        bos_token_id=256, eos_token_id=257, pad_token_id=258, **shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token=None
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
