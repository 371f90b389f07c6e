"""What weights say of themselves: architecture, size, quantisation, context."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from studiolo.errors import StudioloError
from studiolo.models import gguf
from studiolo.models.header import read_header

Purpose = Literal["chat", "completion", "embedding"]
Format = Literal["gguf", "safetensors"]

_LONGEST_JSON = 1 << 26
# What a folder of weights in safetensors is made of: weights, settings, tokenizers, templates.
OF_FOLDERS = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
# Pickles can run any code when they are read; they are never taken, and refused where there is nothing else.
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


class Value(BaseModel):
    """Immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Facts(Value):
    """None where the files do not say.

    Attributes:
        context: tokens that the model can look at together.
        width: numbers in the vector of a token; for embedding models, in a text's vector.
        chat_template: whether it brings a template for conversations.
    """

    architecture: str
    quantisation: str
    parameters: int | None = None
    context: int | None = None
    width: int | None = None
    vocabulary: int | None = None
    chat_template: bool = False


def format_of(path: Path) -> Format:
    """The format of a file or folder of weights, by its names alone.

    Raises:
        StudioloError: it is neither a .gguf file nor a folder with config.json and *.safetensors.
    """
    if path.is_dir():
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return "safetensors"
        held = [file.name for file in path.iterdir() if file.suffix in PICKLES]
        if held:
            raise refused_pickles(path, held)
        raise StudioloError(
            "no weights of a language model: it holds no config.json with *.safetensors",
            where=path,
            remedy="Give such a folder, or a .gguf file.",
        )
    if path.suffix.lower() in PICKLES:
        raise refused_pickles(path, [path.name])
    if not path.is_file():
        raise StudioloError("no such file or folder", where=path, remedy="Check the path.")
    if path.suffix.lower() != ".gguf":
        raise StudioloError(
            "weights of an unknown format",
            where=path,
            remedy="Give a .gguf file, or a folder with config.json and *.safetensors.",
        )
    return "gguf"


def refused_pickles(where: object, names: list[str]) -> StudioloError:
    return StudioloError(
        f"only pickled weights ({', '.join(sorted(names)[:3])}), and reading those can run any code",
        where=where,
        remedy="Look for the same model as .safetensors or .gguf.",
    )


def read(path: Path) -> tuple[Facts, Purpose, str | None]:
    """Facts, what the weights are for, and the licence they name (an SPDX id as a rule), if any."""
    return _of_gguf(path) if format_of(path) == "gguf" else _of_folder(path)


def _of_gguf(path: Path) -> tuple[Facts, Purpose, str | None]:
    header = gguf.read_header(path)
    values = header.values
    tokens = values.get("tokenizer.ggml.tokens")
    template = "tokenizer.chat_template" in values
    facts = Facts(
        architecture=str(values.get("general.architecture", "unknown")),
        quantisation=gguf.FILE_TYPES.get(values.get("general.file_type", -1), "unknown"),
        parameters=header.parameters,
        context=header.of_architecture("context_length"),
        width=header.of_architecture("embedding_length"),
        vocabulary=tokens.length if isinstance(tokens, gguf.Items) else None,
        chat_template=template,
    )
    pooled = header.of_architecture("pooling_type")
    purpose: Purpose = "embedding" if pooled else "chat" if template else "completion"
    return facts, purpose, values.get("general.license")


def _of_folder(folder: Path) -> tuple[Facts, Purpose, str | None]:
    config = _object(folder / "config.json")
    text = config.get("text_config")  # models that also see keep what concerns words in here
    words = text if isinstance(text, dict) else config
    numbers = _numbers(folder)
    tokenizer, sentences = (
        _object(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "sentence_bert_config.json")
    )
    template = (folder / "chat_template.jinja").is_file() or "chat_template" in tokenizer
    architectures = config.get("architectures") or [config.get("model_type", "unknown")]
    facts = Facts(
        architecture=str(architectures[0]),
        quantisation=numbers.most_common(1)[0][0],
        parameters=numbers.total(),
        context=sentences.get("max_seq_length") or words.get("max_position_embeddings"),
        width=words.get("hidden_size"),
        vocabulary=words.get("vocab_size"),
        chat_template=template,
    )
    embeds = (folder / "modules.json").is_file()  # what sentence-transformers writes
    return facts, "embedding" if embeds else "chat" if template else "completion", None


def _numbers(folder: Path) -> Counter[str]:
    """How many numbers of each kind are in the safetensors of a folder."""
    found: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in read_header(file).tensors.values():
            found[tensor.dtype] += math.prod(tensor.shape)
    if not found:
        raise StudioloError("no tensors in this folder", where=folder)
    return found


def _object(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _LONGEST_JSON:
        raise StudioloError("too long for a configuration", where=file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudioloError(f"not readable as JSON ({error})", where=file) from error
    if not isinstance(value, dict):
        raise StudioloError("a JSON object was expected", where=file)
    return value
