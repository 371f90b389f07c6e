"""Prompts as people write them: `[V]` for the subject, and files with one prompt a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from studiolo.errors import StudioloError

PLACEHOLDER = "[V]"
MOST_PICTURES = 10_000
"""Of one prompt."""
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class PromptLine:
    """One line of a prompt file: the prompt and what the line says of its own, None where it says nothing."""

    prompt: str
    n: int | None = None
    seed: int | None = None
    negative: str | None = None

    def or_else(self, default: PromptLine) -> PromptLine:
        """The same prompt, with `default` wherever this line says nothing."""
        return PromptLine(
            self.prompt,
            default.n if self.n is None else self.n,
            default.seed if self.seed is None else self.seed,
            default.negative if self.negative is None else self.negative,
        )


def fill_identifier(prompt: str, known: Mapping[str, str] | str | None) -> str:
    """`prompt` with the words that stand for subjects: `[name]` for each subject of `known` (name to word),
    and `[V]` where there is only one; a word alone is one subject without a name.

    Raises:
        StudioloError: the prompt says [V], but there is no subject, or more than one.
    """
    words = {} if known is None else {"V": known} if isinstance(known, str) else dict(known)
    for name, word in words.items():
        prompt = prompt.replace(f"[{name}]", word)
    if PLACEHOLDER not in prompt:
        return prompt
    if len(words) > 1:
        raise StudioloError(
            f"the prompt says {PLACEHOLDER}, and there are {len(words)} subjects",
            where=prompt,
            remedy=f"Write which: {', '.join(f'[{name}]' for name in words)}.",
        )
    if not words:
        raise StudioloError(
            f"the prompt says {PLACEHOLDER}, but this model has learned no subject",
            where=prompt,
            remedy="Name a taught model with --model, or leave it out.",
        )
    return prompt.replace(PLACEHOLDER, next(iter(words.values())))


def spell_out(prompt: str, words: Mapping[str, str]) -> str:
    """`prompt` with each of `words` as all the words that it has, one a vector ("zwx" as "zwx zwx1"), as
    diffusers' pipelines do; where it is spelled out already, it stays so."""
    for word, full in words.items():
        rest = re.escape(full[len(word) :])
        prompt = re.sub(
            rf"(?<!\w){re.escape(word)}(?!\w)" + (f"(?!{rest})" if rest else ""),
            lambda _, full=full: full,  # type: ignore[misc]
            prompt,
            flags=re.IGNORECASE,
        )
    return prompt


def read_prompt_file(path: str | Path) -> list[PromptLine]:
    """The prompts of a UTF-8 file (up to 1 MiB), one a line; blank lines and # comments are skipped.

    A line may end in options of its own: `a fox on the moon --n 2 --seed 7 --negative "snow, night"`.

    Raises:
        StudioloError: the file cannot be read, holds no prompt, or a line has a wrong option; names the line.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError as error:
        raise StudioloError(f"the prompt file cannot be read: {error.strerror}", where=path) from error
    if data is None:
        raise StudioloError("the prompt file is larger than 1 MiB", where=path, remedy="Split it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudioloError("not a text file in UTF-8", where=path, remedy="Save it as UTF-8.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    prompts = [
        parse_line(line, f"{path}, line {number}")
        for number, line in lines
        if line and not line.startswith("#")
    ]
    if not prompts:
        raise StudioloError("no prompt in this file", where=path, remedy="Write one prompt a line.")
    return prompts


def parse_line(line: str, where: str) -> PromptLine:
    """A prompt and the options behind it; `where` names the line in errors."""
    prompt, *rest = re.split(r"(?:^|\s)(?=--\w)", line, maxsplit=1)
    if not prompt.strip():
        raise StudioloError("options without a prompt", where=where, remedy="Begin the line with the prompt.")
    options: dict[str, str] = {}
    try:
        words = iter(shlex.split(rest[0]) if rest else [])
    except ValueError as error:
        raise StudioloError(f"{error} after the prompt", where=where, remedy="Close the quotes.") from error
    for word in words:
        name, separator, value = word.partition("=")
        if name not in ("--n", "--seed", "--negative"):
            near = get_close_matches(name, ["--n", "--seed", "--negative"], n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise StudioloError(
                f"there is no option {name}",
                where=where,
                remedy=f"{hint}Known: --n, --seed, --negative TEXT.",
            )
        options[name[2:]] = value if separator else next(words, "")
    return PromptLine(
        prompt.strip(),
        n=_whole_number(options, "n", 1, MOST_PICTURES, where),
        seed=_whole_number(options, "seed", 0, 2**32 - 1, where),
        negative=options.get("negative"),
    )


def _whole_number(options: dict[str, str], name: str, least: int, most: int, where: str) -> int | None:
    if name not in options:
        return None
    text = options[name]
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
        raise StudioloError(
            f"--{name} {text!r} is not a whole number of at least {least} and at most {most}",
            where=where,
            remedy=f"Write --{name} 4.",
        )
    return int(text)
