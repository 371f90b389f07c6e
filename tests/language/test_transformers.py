"""The transformers completer against `generate` of the library itself, on tiny random models of the real
classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from studiolo.language.engines.completer import Completion, Constraint, Piece, Sampling
from studiolo.language.engines.transformers import TransformersCompleter
from studiolo.language.errors import InvalidRequestError, OverloadedError, UnsupportedError

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def gemma3() -> Gemma3ForCausalLM:
    """Two layers that see 8 tokens back only, and one that sees all."""
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=8, layer_types=layers, query_pre_attn_scalar=8)
    )


@pytest.fixture(scope="module", params=[llama, gemma3], ids=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[], Any] = request.param
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():  # random weights repeat one token for ever; stronger ones do not
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(path)
    byte_level(path)
    return path


def byte_level(path: Path) -> None:
    """A tokenizer of single bytes."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token=None
    ).save_pretrained(path)


def completer(folder: Path, **settings: Any) -> TransformersCompleter:
    return TransformersCompleter(folder, dtype=torch.float32, **settings)


async def pieces(engine: TransformersCompleter, wanted: Completion) -> list[Piece]:
    return [piece async for piece in engine.complete(wanted)]


def made(found: list[Piece]) -> list[int]:
    return [token for piece in found for token in piece.tokens]


PROMPTS = [
    (256, *range(40, 45)),
    (256, *range(40, 75)),
    (256, 200, 100),
    (256, *range(90, 150)),
]
GREEDY = Sampling(temperature=0)


def test_many_at_once_are_each_what_the_library_makes_of_it_alone(folder: Path) -> None:

    async def together() -> list[list[int]]:
        engine = completer(folder)
        wanted = [Completion(prompt, 24, GREEDY) for prompt in PROMPTS]
        found = await asyncio.gather(*[pieces(engine, one) for one in wanted])
        await engine.close()
        return [made(one) for one in found]

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, ours in zip(PROMPTS, asyncio.run(together()), strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
        expected = theirs.tolist()
        if 257 in expected:
            expected = expected[: expected.index(257)]
        assert ours == expected


def test_a_shared_beginning_is_not_computed_again_and_changes_nothing(folder: Path) -> None:
    async def twice() -> tuple[list[Piece], list[Piece]]:
        engine = completer(folder)
        wanted = Completion(PROMPTS[1], 12, GREEDY)
        first, again = await pieces(engine, wanted), await pieces(engine, wanted)
        await engine.close()
        return first, again

    first, again = asyncio.run(twice())
    assert made(first) == made(again)
    assert (first[0].cached, again[0].cached) == (0, len(PROMPTS[1]) - 1)


def test_freed_slots_are_used_up_and_nothing_else_changes(folder: Path) -> None:
    async def many() -> tuple[list[int], list[int], int]:
        engine = completer(folder)
        wanted = Completion(PROMPTS[0], 16, GREEDY)
        before = made(await pieces(engine, wanted))
        for start in range(40):  # each begins otherwise, so that nothing is shared
            await pieces(engine, Completion((start, *PROMPTS[3]), 8, GREEDY))
        after = made(await pieces(engine, wanted))
        await engine.close()
        return before, after, 40 * (len(PROMPTS[3]) + 8)

    before, after, _ = asyncio.run(many())
    assert before == after


def test_a_seed_repeats_its_draws_whoever_else_is_served(folder: Path) -> None:
    async def drawn() -> tuple[list[int], list[int], list[int]]:
        engine = completer(folder)
        one = Completion(PROMPTS[0], 16, Sampling(temperature=1.0, seed=7, top_k=50, top_p=0.9))
        other = Completion(PROMPTS[0], 16, Sampling(temperature=1.0, seed=8))
        alone = await pieces(engine, one)
        beside, another = await asyncio.gather(pieces(engine, one), pieces(engine, other))
        await engine.close()
        return made(alone), made(beside), made(another)

    alone, beside, another = asyncio.run(drawn())
    assert alone == beside != another


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 99}, "s": {"enum": ["a", "é"]}},
    "required": ["n", "s"],
    "additionalProperties": False,
}


def test_a_constraint_holds_whatever_the_model_would_say(folder: Path) -> None:
    async def answers() -> list[list[Piece]]:
        engine = completer(folder)
        rules = [
            Constraint("json", SCHEMA),
            Constraint("regex", "[0-9]{3}-x"),
            Constraint("choice", ("ja", "né")),
        ]
        found = [
            await pieces(
                engine, Completion(PROMPTS[0], 60, Sampling(temperature=1.0, seed=seed), constraint=rule)
            )
            for rule in rules
            for seed in range(3)
        ]
        await engine.close()
        return found

    texts = ["".join(piece.text for piece in found) for found in asyncio.run(answers())]
    for text in texts[:3]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert all(len(text) == 5 and text.endswith("-x") for text in texts[3:6])
    assert set(texts[6:]) <= {"ja", "né"}


def test_what_cannot_be_enforced_is_refused_before_a_token_is_made(folder: Path) -> None:
    async def refused(wanted: Completion) -> None:
        engine = completer(folder)
        try:
            await pieces(engine, wanted)
        finally:
            await engine.close()

    with pytest.raises(UnsupportedError, match="cannot be enforced"):
        asyncio.run(refused(Completion(PROMPTS[0], 8, constraint=Constraint("regex", "(?=a)b"))))
    with pytest.raises(InvalidRequestError, match="context of 128"):
        asyncio.run(refused(Completion((1,) * 128, 8)))


def test_the_end_is_told_and_every_token_is_in_one_piece(folder: Path) -> None:
    letters = Constraint("regex", "[a-z]{20}")

    async def ended() -> tuple[list[Piece], list[Piece], list[Piece]]:
        engine = completer(folder)
        whole = await pieces(engine, Completion(PROMPTS[2], 40, GREEDY, constraint=letters))
        cut = await pieces(engine, Completion(PROMPTS[2], 5, GREEDY, constraint=letters))
        text = "".join(piece.text for piece in whole)
        stop = text[11:14]
        stopped = await pieces(engine, Completion(PROMPTS[2], 40, GREEDY, (stop,), letters))
        await engine.close()
        assert "".join(piece.text for piece in stopped) == text[: text.index(stop)]
        return whole, cut, stopped

    whole, cut, stopped = asyncio.run(ended())
    assert [(found[-1].end, len(made(found))) for found in (whole, cut)] == [("eos", 20), ("length", 5)]
    assert stopped[-1].end == "stop"
    assert made(stopped) == made(whole)[: len(made(stopped))]
    assert all(piece.end is None for piece in whole[:-1])


def test_log_probabilities_are_the_models_own(folder: Path) -> None:
    async def told() -> list[Piece]:
        engine = completer(folder)
        found = await pieces(engine, Completion(PROMPTS[0], 4, GREEDY, logprobs=3))
        await engine.close()
        return found

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = asyncio.run(told())
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPTS[0], *made(found)]])).logits[0]
    for index, token in enumerate(logprob for piece in found for logprob in piece.logprobs):
        expected = logits[len(PROMPTS[0]) - 1 + index].log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [other.id for other in token.top] == expected.topk(3).indices.tolist()


def test_a_closed_stream_makes_room_and_a_full_queue_says_so(folder: Path) -> None:
    async def crowded() -> None:
        engine = completer(folder, parallel=1, queue=1)
        running = engine.complete(Completion(PROMPTS[0], 100, GREEDY))
        await anext(running)
        waiting = asyncio.create_task(pieces(engine, Completion(PROMPTS[2], 4, GREEDY)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await pieces(engine, Completion(PROMPTS[2], 4, GREEDY))
        await running.aclose()
        assert len(made(await waiting)) == 4
        await engine.close()

    asyncio.run(crowded())
