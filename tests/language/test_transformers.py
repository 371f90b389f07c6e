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
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from language import families
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Call,
    CallResult,
    GenerationConfig,
    Request,
    Thinking,
    ThinkingMode,
    Tool,
    ToolChoice,
    ToolMode,
    user,
)
from studiolo.language.engines import rounds
from studiolo.language.engines.completer import Completion, Constraint, Piece, Sampling
from studiolo.language.engines.local import LocalEngine
from studiolo.language.engines.servable import why_not
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


def gemma4(**variant: Any) -> Gemma4ForCausalLM:
    """Layers that see 8 tokens back and layers that see all, with heads of different sizes; the last two use
    the keys and values of those before; each layer has an embedding of its own (as E2B and E4B)."""
    near, far = "sliding_attention", "full_attention"
    config = {
        **SHAPE,
        "num_hidden_layers": 5,
        "layer_types": [near, near, far, near, far],
        "sliding_window": 8,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 260,
        "hidden_size_per_layer_input": 8,
        "final_logit_softcapping": 30.0,
    }
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**config, **variant}))


def gemma4_large() -> Gemma4ForCausalLM:
    """Experts, keys that are values, fewer heads in the layers that see all (as 26B-A4B and 31B)."""
    plain = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
    heads = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    return gemma4(use_bidirectional_attention="vision", **plain, **heads, **experts)


def mistral() -> MistralForCausalLM:
    """All layers see 8 tokens back."""
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))


@pytest.fixture(
    scope="module", params=[llama, mistral, gemma3, gemma4, gemma4_large], ids=lambda make: make.__name__
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[], Any] = request.param
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    return saved(make(), path)


def saved(model: Any, path: Path) -> Path:
    """The model's folder, with a tokenizer of bytes."""
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


def test_it_tells_how_much_of_a_long_prompt_it_has_read(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(rounds, "_CHUNK", 32)

    async def play() -> list[Piece]:
        engine = completer(folder)
        found = await pieces(engine, Completion((256, *range(20, 95)), 2, GREEDY))
        await engine.close()
        return found

    found = asyncio.run(play())
    assert [piece.read for piece in found] == [32, 64, 0, 0][: len(found)]
    assert [piece.cached for piece in found] == [0, None, None, None][: len(found)]
    assert [len(piece.tokens) for piece in found[:3]] == [0, 0, 1]


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


def test_a_model_that_also_sees_and_hears_is_served_for_its_words(tmp_path: Path) -> None:
    """Gemma 4 is published in this class."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    vision = {**small, "num_attention_heads": 2, "num_key_value_heads": 2, "global_head_dim": 16}
    config = Gemma4Config(text_config=gemma4().config.to_dict(), vision_config=vision, audio_config=None)
    torch.manual_seed(0)
    model = Gemma4ForConditionalGeneration(config)
    folder = saved(model, tmp_path)
    theirs = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=12, do_sample=False)

    async def ours() -> list[int]:
        engine = completer(folder)
        found = made(await pieces(engine, Completion(PROMPTS[1], 12, GREEDY)))
        await engine.close()
        return found

    assert asyncio.run(ours()) == theirs[0, len(PROMPTS[1]) :].tolist()


def test_a_model_that_slots_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = saved(gemma4(use_bidirectional_attention="all"), tmp_path)
    with pytest.raises(UnsupportedError, match="those that come after them"):
        completer(folder)


def test_models_without_keys_and_values_for_every_token_are_known() -> None:
    shape = {**SHAPE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}
    assert "a state" in (why_not(RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**shape))) or "")
    chunked = llama()
    chunked.config.layer_types = ["chunked_attention"] * 3
    assert "'chunked_attention'" in (why_not(chunked) or "")
    assert why_not(gemma4()) is None


def words_and_bytes(path: Path) -> None:
    """A tokenizer as Llama 2 and Gemma have: a space is written as a letter, what is no word as bytes."""
    vocabulary = {f"<0x{value:02X}>": value for value in range(256)}
    vocabulary |= {text: 256 + place for place, text in enumerate(("▁", "H", "i", "Hi", "<eos>", "<unk>"))}
    model = BPE(vocabulary, [("H", "i")], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)


@pytest.mark.parametrize("written", [byte_level, words_and_bytes])
def test_tokens_are_told_with_their_bytes(tmp_path: Path, written: Callable[[Path], None]) -> None:
    folder = saved(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": 263})), tmp_path)
    written(folder)
    text = "Hi Hié 世 <eos>"

    async def told() -> tuple[list[int], list[bytes]]:
        engine = completer(folder)
        tokens = (await LocalEngine(engine).tokenize([text]))[0]
        await engine.close()
        return [token.id for token in tokens], [token.data for token in tokens]

    ids, data = asyncio.run(told())
    assert b"".join(data).decode() == text
    assert ids == AutoTokenizer.from_pretrained(folder)(text, split_special_tokens=True)["input_ids"]
    assert (b"Hi" in data) == (written is words_and_bytes)
    assert data.count("é".encode()[:1]) == 1  # half of a character


def test_control_tokens_that_the_template_names_are_said_and_can_be_asked_for(tmp_path: Path) -> None:
    """As `<|tool_call>` and `<|"|>` of Gemma 4; those with a role are not."""
    folder = saved(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": 263})), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call>", "<|never>"]})
    call, never = tokenizer.convert_tokens_to_ids(["<|call>", "<|never>"])
    tokenizer.chat_template = "{{ bos_token }}<|call>"
    tokenizer.save_pretrained(folder)

    async def said() -> tuple[list[Piece], list[Piece]]:
        engine = completer(folder)
        rule = Constraint("lark", 'start: "<|call>" /[0-9]{2}/')
        grammatical = await pieces(engine, Completion(PROMPTS[0], 30, GREEDY, constraint=rule))
        assert engine._text([40, call, never, tokenizer.eos_token_id, 41]) == tokenizer.decode([40, call, 41])
        stopped = await pieces(engine, Completion(PROMPTS[0], 30, GREEDY, ("<|call>",), rule))
        await engine.close()
        return grammatical, stopped

    grammatical, stopped = asyncio.run(said())
    text = "".join(piece.text for piece in grammatical)
    assert text.startswith("<|call>")
    assert len(text) == len("<|call>") + 2
    assert stopped[-1].stop == "<|call>"
    assert "".join(piece.text for piece in stopped) == ""


def test_a_conversation_in_gemma_4s_own_form_with_its_control_tokens(tmp_path: Path) -> None:
    """Whatever the weights: calls are sound, and the tags are single tokens in the prompt."""
    tags = [tag for tag in families.CONTROL if "|" in tag and tag in families.GEMMA4]
    size = 260 + len(tags)
    torch.manual_seed(0)
    model = gemma4(vocab_size=size, vocab_size_per_layer_input=size, max_position_embeddings=1024)
    folder = saved(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    tokenizer.chat_template = families.GEMMA4
    tokenizer.save_pretrained(folder)
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
        "required": ["city"],
    }
    tool = Tool(name="weather", description="Of a city.", parameters=parameters)
    thinking = Thinking(mode=ThinkingMode.BUDGET, budget=9)
    config = GenerationConfig(max_tokens=200, temperature=1, seed=1, thinking=thinking)
    choice = ToolChoice(mode=ToolMode.ANY, parallel=False)
    first = Request(model="m", contents=(user("Rome?"),), tools=(tool,), tool_choice=choice, config=config)

    async def asked() -> tuple[Call, tuple[int, ...]]:
        below = completer(folder)
        engine = LocalEngine(below)
        response = await collected(engine.generate(first))
        (call,) = response.calls
        result = user(CallResult(name=call.name, result='<|"|>', id=call.id))
        contents = (*first.contents, response.candidates[0].content, result)
        prompt = engine._prompt(first.model_copy(update={"contents": contents}), engine._tools(first)).tokens
        await engine.close()
        return call, prompt

    call, prompt = asyncio.run(asked())
    jsonschema.validate(call.arguments, parameters)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert prompt.count(tokenizer.convert_tokens_to_ids("<|tool_call>")) == 1
    assert prompt.count(tokenizer.convert_tokens_to_ids("<tool_response|>")) == 1
    quotes = prompt.count(tokenizer.convert_tokens_to_ids('<|"|>'))
    forged = tokenizer.decode(prompt).count('<|"|>') - quotes
    assert (quotes % 2, forged) == (0, 1)


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
    async def told() -> list[list[Piece]]:
        engine = completer(folder)
        drawn = Sampling(temperature=1.0, seed=3)
        wanted = [Completion(prompt, 12, drawn, logprobs=3) for prompt in PROMPTS]
        found = await asyncio.gather(*[pieces(engine, one) for one in wanted])
        await engine.close()
        return found

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, found in zip(PROMPTS, asyncio.run(told()), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *made(found)]])).logits[0]
        for index, token in enumerate(logprob for piece in found for logprob in piece.logprobs):
            expected = logits[len(prompt) - 1 + index].log_softmax(-1)
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
