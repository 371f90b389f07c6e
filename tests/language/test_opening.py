"""Engines by name, on real weights."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

import studiolo
from language.stub import StubCompleter
from pulled import weights_for_tests
from studiolo.errors import StudioloError
from studiolo.language import opening
from studiolo.language.collect import collected
from studiolo.language.conversation import Format, GenerationConfig, Request, user
from studiolo.language.engines.completer import Sampling
from studiolo.language.engines.local import LocalEngine
from studiolo.language.errors import InvalidRequestError, TooLongError, UnknownModelError, UnsupportedError
from studiolo.models.recommended import Recommended, recommended


def test_a_model_is_opened_once_for_all_and_closed_with_all():
    weights_for_tests("smollm2")

    async def go():
        one, two = await asyncio.gather(opening.engine("smollm2"), opening.engine("smollm2"))
        assert one is two
        await opening.close_all()
        again = await opening.engine("smollm2")
        assert again is not one
        await opening.close_all()

    asyncio.run(go())


def test_what_was_not_there_may_come(tmp_path):
    async def go():
        with pytest.raises(StudioloError, match="models pull smollm2"):
            await opening.engine("smollm2")
        weights_for_tests("smollm2")
        assert (await opening.engine("smollm2")).model == "smollm2"
        await opening.close_all()

    asyncio.run(go())


@pytest.mark.parametrize("name", ["smolm2", "no/such.gguf"])
def test_names_of_nothing_are_told(name):
    with pytest.raises((UnknownModelError, StudioloError)):
        asyncio.run(opening.engine(name))


def test_hosted_models_need_no_weights(monkeypatch):
    """Those that are open weights too: not pulled, they are asked where they are hosted."""
    opened = asyncio.run(opening.engine("gemma-3-12b"))
    assert opened.capabilities.context == 131_072


def test_embeddings_by_name():
    weights_for_tests("minilm")
    near, same, far = studiolo.embed(
        ["a cat sleeps", "a kitten is asleep", "the price of copper fell"], model="minilm"
    )
    assert math.isclose(math.hypot(*near), 1, rel_tol=1e-6)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    assert dot(near, same) > 0.6 > 0.3 > dot(near, far)
    with pytest.raises(InvalidRequestError, match="256"):
        studiolo.embed(["word " * 400], model="minilm")
    with pytest.raises(UnsupportedError, match="cannot speak"):
        studiolo.ask("Hello?", model="minilm")


def test_reuse_answers_a_rephrased_question_again():
    weights_for_tests("smollm2")
    weights_for_tests("minilm")
    eggs = {"type": "string", "maxLength": 9}

    def asked(question):
        chat = studiolo.Chat(reuse=0.9, schema=eggs)
        return chat.send(question), chat.response

    first, response = asked("How do I boil an egg?")
    assert not response.notes
    again, response = asked("What is the best way to boil an egg?")
    assert again == first
    (note,) = response.notes
    assert note.startswith("reused, similarity 0.9")
    assert response.usage.answer == 0
    _, response = asked("How do I boil two eggs?")
    assert not response.notes


def test_a_folder_recommends_by_its_generation_config(tmp_path):
    assert recommended(tmp_path) == Recommended()
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_k": 64, "eos_token_id": 1}))
    assert recommended(tmp_path) == Recommended(temperature=0.7, top_k=64)
    file.write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(StudioloError, match="cannot be"):
        recommended(tmp_path)


def test_a_gguf_file_recommends_by_its_header(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 20)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert recommended(tmp_path / "x.gguf") == Recommended(temperature=0.5, top_k=20)


def test_what_is_recommended_gives_way_to_the_request_and_penalties_to_forms():
    ours = Sampling(temperature=0.2, top_p=0.9, frequency_penalty=0.3)

    def used(**config):
        completer = StubCompleter(["{}"])
        request = Request(model="m", contents=(user("x"),), config=GenerationConfig(**config))

        async def go():
            return [delta async for delta in LocalEngine(completer, ours).generate(request)]

        asyncio.run(go())
        return completer.seen[0].completion.sampling

    assert used() == ours
    assert used(temperature=0).temperature == 0
    assert used(temperature=0).top_p == 0.9
    held = used(format=Format(kind="json", rule={"type": "object"}))
    assert (held.temperature, held.frequency_penalty) == (0.2, None)


def test_a_longer_context_is_set_by_the_environment(monkeypatch, smollm2):
    monkeypatch.setenv("STUDIOLO_CONTEXT", "512")

    async def go():
        opened = await opening.engine(str(smollm2))
        assert opened.capabilities.context == 512
        with pytest.raises(TooLongError, match="512"):
            await collected(opened.generate(Request(model="m", contents=(user("word " * 600),))))
        await opening.close_all()

    asyncio.run(go())
    monkeypatch.setenv("STUDIOLO_CONTEXT", "many")
    with pytest.raises(InvalidRequestError, match="many"):
        opening.longest_context()
