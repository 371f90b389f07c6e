"""Reuse by meaning: when an earlier answer is given again, and when never."""

from __future__ import annotations

import asyncio
import math
import runpy
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest

from studiolo.errors import StudioloError
from studiolo.language.caching.reusing import Reusing
from studiolo.language.caching.semantic import SemanticIndex, keepable, reusable
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Call,
    Candidate,
    Content,
    Data,
    Delta,
    FinishReason,
    GenerationConfig,
    Request,
    Response,
    Role,
    Text,
    Thought,
    Tool,
    Usage,
    model,
    user,
)
from studiolo.language.engines.base import Capabilities
from studiolo.language.errors import InvalidRequestError

ROOT = Path(__file__).parent.parent.parent
COLD = GenerationConfig(temperature=0)


class Words:
    """Texts as the directions of their words: the cosine is (words in common) / sqrt(words * words)."""

    name = "words"

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    async def reads(self, text: str) -> bool:
        return len(text) <= 100

    async def embed(self, texts):
        vectors = np.zeros((len(texts), 512), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in set(text.lower().split()):
                row[self.places.setdefault(word, len(self.places))] = 1
            row /= np.linalg.norm(row)
        return vectors


class Answering:
    """Answers each request by its number."""

    model = "m"
    capabilities = Capabilities(context=100)

    def __init__(self, *parts, finish: FinishReason = FinishReason.STOP) -> None:
        self.asked, self.parts, self.finish = 0, parts, finish

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.asked += 1
        for part in self.parts or (Text(text="answer "), Text(text=str(self.asked))):
            yield Delta(part=part, model=self.model)
        yield Delta(finish=self.finish, usage=Usage(prompt=5, answer=2), model=self.model)

    async def count_tokens(self, request: Request) -> int:
        return 5

    async def embed(self, texts, *, dimensions=None):
        return [[1.0] for _ in texts]

    async def close(self) -> None: ...


def asking(text: str, **told) -> Request:
    return Request(**{"model": "m", "contents": (user(text),), "config": COLD, **told})


def answers(engine, *requests: Request) -> list[Response]:
    async def run():
        return [await collected(engine.generate(request)) for request in requests]

    return asyncio.run(run())


@pytest.fixture
def index(tmp_path) -> SemanticIndex:
    return SemanticIndex(Words(), tmp_path / "answers.sqlite")


def test_a_rephrased_question_gets_the_earlier_answer_marked(index):
    engine = Answering()
    first, second = answers(
        Reusing(engine, index, threshold=0.8), asking("why is the sky blue"), asking("why is the sky so blue")
    )
    assert engine.asked == 1
    assert first.notes == ()
    assert (second.text, second.model) == (first.text, first.model)
    assert second.notes == (f"reused, similarity {5 / math.sqrt(5 * 6):.3f}",)
    assert (first.usage.total, second.usage.total) == (7, 0)


def test_the_threshold_decides(index):
    engine = Answering()
    alike = asking("why is the sky blue"), asking("why is the sky so blue")  # cosine 0.913
    answers(Reusing(engine, index, threshold=0.92), *alike)
    assert engine.asked == 2
    answers(Reusing(engine, index, threshold=0.91), asking("why is the sky just blue"))
    assert engine.asked == 2


def test_off_unless_a_threshold_is_given(index):
    engine = Answering()
    answers(Reusing(engine, index), asking("why"), asking("why"))
    assert (engine.asked, len(index)) == (2, 0)
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(InvalidRequestError):
            Reusing(engine, index, threshold=threshold)


def test_the_closest_that_nothing_tells_apart_is_taken(index):
    engine = Answering()
    asked = [
        "what is the sum of 17 and 23 please", "what is the sum of 17 and 24", "what is the sum of 17 and 23",
    ]  # fmt: skip
    *_, last = answers(Reusing(engine, index, threshold=0.8), *map(asking, asked))
    assert (engine.asked, last.text) == (2, "answer 1")


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"system": "Be brief."},
        {"config": GenerationConfig(temperature=0, max_tokens=9)},
        {"config": GenerationConfig(temperature=0, seed=1)},
        {"config": GenerationConfig(temperature=0, format={"kind": "json"})},
        {"safety": ({"harm": "hate", "threshold": "off"},)},
        {"contents": (user("Hello."), model("Hello!"), user("why"))},
    ],
)
def test_all_but_the_last_text_must_be_equal(index, other):
    engine = Answering()
    answers(Reusing(engine, index, threshold=0.5), asking("why"), asking("why", **other))
    assert engine.asked == 2
    answers(Reusing(engine, index, threshold=0.5), asking("why", **other))
    assert engine.asked == 2


def test_a_question_that_is_to_be_judged_is_not_answered_by_an_earlier_one(index):
    engine = Answering()
    judged = asking("why", safety=({"harm": "hate", "threshold": "low"},))
    answers(Reusing(engine, index, threshold=0.5), judged, judged)
    assert (engine.asked, len(index)) == (2, 0)


def test_vectors_of_two_embedders_are_not_compared(tmp_path):
    engine, other = Answering(), Words()
    other.name = "others"
    for embedder in (Words(), other):
        index = SemanticIndex(embedder, tmp_path / "answers.sqlite")
        answers(Reusing(engine, index, threshold=0.5), asking("why"))
        index.close()
    assert engine.asked == 2


@pytest.mark.parametrize(
    "request_",
    [
        asking("why", tools=(Tool(name="look_up"),)),
        asking("why", config=GenerationConfig()),
        asking("why", config=GenerationConfig(temperature=0.7)),
        asking("why", config=GenerationConfig(temperature=0, logprobs=1)),
        asking("why", config=GenerationConfig(temperature=0, modalities=("text", "image"))),
        asking("why", cache="book"),
        asking(" "),
        asking("", contents=(user("why", Data(media_type="image/png", data=b"x")),)),
        asking("", contents=(user(Data(media_type="image/png", data=b"x")), model("A cat."), user("why"))),
        asking("", contents=(user("why"), model("because"))),
    ],
)
def test_requests_that_are_never_answered_by_another(index, request_):
    assert not reusable(request_)
    engine = Answering()
    answers(Reusing(engine, index, threshold=0.1), request_, request_)
    assert (engine.asked, len(index)) == (2, 0)


def test_sampled_answers_are_reused_only_if_allowed(index):
    engine, warm = Answering(), asking("why", config=GenerationConfig(temperature=0.7))
    answers(Reusing(engine, index, threshold=0.9, sampled=True), warm, warm)
    assert engine.asked == 1


@pytest.mark.parametrize(
    "engine",
    [
        Answering(finish=FinishReason.LENGTH),
        Answering(finish=FinishReason.SAFETY),
        Answering(Call(name="look_up", arguments={})),
        Answering(Text(text=" ")),
        Answering(Text(text="see"), Data(media_type="image/png", data=b"x")),
    ],
)
def test_answers_that_are_never_given_again(index, engine):
    answers(Reusing(engine, index, threshold=0.1), asking("why"), asking("why"))
    assert (engine.asked, len(index)) == (2, 0)
    assert not keepable(Response(candidates=(), usage=Usage(), model="m", blocked=FinishReason.SAFETY))


def test_thoughts_and_several_answers_come_back_as_they_were(index):
    def candidate(*parts):
        return Candidate(content=Content(role=Role.MODEL, parts=parts), finish=FinishReason.STOP)

    given = Response(
        candidates=(
            candidate(Thought(text="Hm.", signature=b"s"), Text(text="a")),
            candidate(Text(text="b")),
        ),
        usage=Usage(prompt=5, answer=2, thoughts=1),
        model="m",
    )
    asyncio.run(index.add(asking("why"), given))
    (again,) = answers(Reusing(Answering(), index, threshold=1.0), asking("why"))
    assert again == given.model_copy(update={"usage": Usage(), "notes": ("reused, similarity 1.000",)})


def test_a_stream_that_is_left_is_not_kept(index):
    async def run():
        stream = Reusing(Answering(), index, threshold=0.9).generate(asking("why"))
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    assert len(index) == 0


def test_a_text_that_the_embedder_does_not_see_whole_is_not_reused(index):
    engine, long = Answering(), asking("why " * 50)
    answers(Reusing(engine, index, threshold=0.5), long, long)
    assert (engine.asked, len(index)) == (2, 0)


def test_answers_outlive_the_process(tmp_path):
    first = SemanticIndex(Words(), tmp_path / "answers.sqlite")
    answers(Reusing(Answering(), first, threshold=0.9), asking("why is that"))
    first.close()
    engine = Answering()
    answers(
        Reusing(engine, SemanticIndex(Words(), tmp_path / "answers.sqlite"), threshold=0.9),
        asking("Why is that"),
    )
    assert engine.asked == 0


def test_the_least_recently_used_makes_room(tmp_path):
    index, engine = SemanticIndex(Words(), tmp_path / "answers.sqlite", entries=2), Answering()
    reusing = Reusing(engine, index, threshold=0.9)
    answers(reusing, asking("one tree"), asking("red house"), asking("one tree"), asking("old street"))
    assert (engine.asked, len(index)) == (3, 2)
    answers(reusing, asking("one tree"), asking("old street"))
    assert engine.asked == 3
    answers(reusing, asking("red house"))
    assert engine.asked == 4


def test_bytes_are_bounded(tmp_path):
    whole = SemanticIndex(Words(), tmp_path / "whole.sqlite")
    answers(Reusing(Answering(), whole, threshold=0.9), asking("one tree"))
    (size,) = whole._database.execute("SELECT size FROM answers").fetchone()
    for room, left in ((size - 1, 0), (size, 1), (2 * size - 1, 1), (2 * size, 2)):
        index = SemanticIndex(Words(), tmp_path / f"{room}.sqlite", size=room)
        answers(Reusing(Answering(), index, threshold=0.9), asking("one tree"), asking("two elms"))
        assert len(index) == left


def test_an_answer_to_the_same_text_replaces_the_old(index):
    async def run():
        for text in ("old", "new"):
            response = await collected(Answering(Text(text=text)).generate(asking("why")))
            assert await index.add(asking("why"), response)
        hit = await index.find(asking("why"), 1.0)
        assert hit is not None
        assert hit.response.text == "new"

    asyncio.run(run())
    assert len(index) == 1
    index.clear()
    assert len(index) == 0


def test_what_is_no_index_is_named(tmp_path):
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be taken for one " * 20)
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for name in ("text", "newer"):
        with pytest.raises(StudioloError, match="not an index"):
            SemanticIndex(Words(), tmp_path / f"{name}.sqlite")


def test_a_full_disk_takes_no_answer_away(index, caplog):
    engine = Reusing(Answering(), index, threshold=0.9)
    answers(engine, asking("why"))
    index._database.execute("PRAGMA query_only = ON")
    known, new = answers(engine, asking("why"), asking("how"))
    assert (known.text, new.text) == ("answer 2", "answer 3")
    assert "could be looked up" in caplog.text
    assert "could not be kept" in caplog.text


def test_the_benchmark_counts_right(tmp_path):
    script = runpy.run_path(str(ROOT / "benchmarks" / "semantic_cache.py"))
    pairs = tmp_path / "pairs.json"
    pairs.write_text(
        '{"same": [["a b c d", "a b c d e"], ["x", "y"]], '
        '"different": {"numbers": [["a b c 1", "a b c 2"]], "another thing": [["p q r s", "p q r t"]]}}'
    )
    words = Words()
    found = script["measured"](pairs, lambda texts: asyncio.run(words.embed(texts)))
    same, different = script["split"](found)
    assert [pair.similarity for pair in same] == pytest.approx([4 / math.sqrt(20), 0])
    rate = script["rate"]
    assert (rate(same, 0.8, guarded=True), rate(different, 0.8, guarded=True)) == (0.5, 0)
    assert (rate(different, 0.75, guarded=True), rate(different, 0.75, guarded=False)) == (0.5, 1)
    assert "| 0.75 | 50 % | 50 % | 50 % | 100 % |" in script["table"](found)


def test_there_are_enough_pairs():
    script = runpy.run_path(str(ROOT / "benchmarks" / "semantic_cache.py"))
    found = script["measured"](script["PAIRS"], lambda texts: np.zeros((len(texts), 1), np.float32))
    same, different = script["split"](found)
    assert min(len(same), len(different)) >= 60
    texts = {frozenset((pair.one, pair.other)) for pair in found}
    assert len(texts) == len(found)
