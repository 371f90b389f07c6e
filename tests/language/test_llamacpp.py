"""llama.cpp on a real small model: every promise of `Completer`, and what the engine leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import jsonschema
import pytest

from studiolo.errors import StudioloError
from studiolo.language.engines.completer import Completion, Constraint, Sampling
from studiolo.language.engines.llamacpp import BATCH, LlamaCpp
from studiolo.language.engines.llamacpp_desk import Desk
from studiolo.language.engines.llamacpp_stream import Reading
from studiolo.language.engines.vocabulary_guard import write_useless_model
from studiolo.language.errors import InvalidRequestError, LanguageError, OverloadedError, UnsupportedError

pytest.importorskip("xllamacpp")

GREEDY = Sampling(temperature=0)
SLOTS, QUEUE, CONTEXT = 4, 6, 1024


@pytest.fixture(scope="module")
def engine(smollm2):
    engine = LlamaCpp(smollm2, model="smollm2", context=CONTEXT, slots=SLOTS, queue=QUEUE, threads=1)
    yield engine
    asyncio.run(engine.close())


def chat(engine, question):
    return engine.tokenize(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


def wish(engine, question="Name three colours.", **fields):
    given = {"prompt": chat(engine, question), "max_tokens": 16, "sampling": GREEDY} | fields
    return Completion(**given)


async def all_of(engine, completion):
    return [piece async for piece in engine.complete(completion)]


def pieces_of(engine, completion):
    return asyncio.run(all_of(engine, completion))


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def tokens_of(pieces):
    return tuple(token for piece in pieces for token in piece.tokens)


# --- what it says of itself -------------------------------------------------------------------------------


def test_it_says_what_the_model_is(engine):
    able = engine.capabilities
    assert (engine.model, able.context, able.embeddings) == ("smollm2", CONTEXT, False)
    assert (able.grammar, able.logprobs, able.seed) == (True, True, True)
    assert "<|im_start|>" in engine.template
    assert engine.special_tokens["eos_token"] == "<|im_end|>"


def test_special_tokens_are_read_as_such_only_when_wished(engine):
    assert len(engine.tokenize("<|im_end|>")) == 1
    assert len(engine.tokenize("<|im_end|>", special=False)) > 1
    text = "<|im_start|>user\nGrüße, 世界 👩‍👩‍👧<|im_end|>\n"
    assert engine.detokenize(engine.tokenize(text)) == text
    assert engine.tokenize("") == ()


def test_tokens_have_the_bytes_that_the_server_says(engine):
    text = "Die Straße, 世界 👩‍👩‍👧\n\tdef f(x): <|im_end|>"
    body = {"content": text, "add_special": False, "parse_special": False, "with_pieces": True}
    told = engine._desk.ask("/tokenize", body)["tokens"]
    tokens = engine.tokenize(text, special=False)
    assert list(tokens) == [one["id"] for one in told]
    pieces = [one["piece"] for one in told]
    data = [piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces]
    assert engine.token_bytes(tokens) == data
    assert b"".join(data).decode() == text
    assert any(isinstance(piece, list) for piece in pieces)  # a character may be in several tokens


# --- what comes out ---------------------------------------------------------------------------------------


def test_a_stream_is_what_the_engine_says_at_once(engine):
    """Compared with the server's own answer that is not streamed."""
    wanted = wish(engine, max_tokens=24)
    whole = engine._server.handle_completions(
        {
            "prompt": list(wanted.prompt),
            "max_tokens": 24,
            "temperature": 0,
            "verbose": True,
            "return_tokens": True,
        }
    )
    pieces = pieces_of(engine, wanted)
    assert text_of(pieces) == whole["choices"][0]["text"]
    told = tuple(whole["__verbose"]["tokens"])
    assert tokens_of(pieces) == (told if pieces[-1].end == "length" else told[:-1])
    assert text_of(pieces) == engine.detokenize(tokens_of(pieces))
    assert [piece.end for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces_of(engine, wanted)[-1] == pieces[-1]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_max_tokens_is_kept_to_the_token(engine, most):
    pieces = pieces_of(engine, wish(engine, "Count to one hundred.", max_tokens=most))
    assert (len(tokens_of(pieces)), pieces[-1].end) == (most, "length")


def test_the_end_of_a_turn_is_an_end_and_no_text(engine):
    pieces = pieces_of(engine, wish(engine, "What is the capital of France?", max_tokens=60))
    assert pieces[-1].end == "eos"
    assert "<|" not in text_of(pieces)
    assert engine.detokenize(tokens_of(pieces)) == text_of(pieces)


def test_a_seed_repeats_and_another_differs(engine):
    def said(seed):
        sampling = Sampling(temperature=1.0, seed=seed)
        return text_of(pieces_of(engine, wish(engine, "Tell a story.", sampling=sampling)))

    assert said(7) == said(7)
    assert len({said(7), said(8), said(-9), said(2**40)}) > 1


def test_a_prefix_that_is_there_is_not_computed_again(engine):
    text = "The quick brown fox jumps over the lazy dog. " * 6
    first = pieces_of(engine, wish(engine, text + "Once.", max_tokens=2))
    second = pieces_of(engine, wish(engine, text + "Twice?", max_tokens=2))
    prompts = zip(chat(engine, text + "Once."), chat(engine, text + "Twice?"), strict=False)
    common = next(place for place, (one, other) in enumerate(prompts) if one != other)
    assert first[0].cached < common == second[0].cached
    assert all(piece.cached is None for piece in second[1:])


def test_it_tells_how_much_of_a_long_prompt_it_has_read(engine):
    prompt = engine.tokenize(" ".join(map(str, range(5000, 5400))))[: CONTEXT - 8]
    pieces = pieces_of(engine, Completion(prompt, max_tokens=2, sampling=GREEDY))
    read = [piece.read for piece in pieces if not piece.made and not piece.end]
    assert read == sorted(read)
    assert read[0] <= BATCH < read[-1] <= len(prompt)
    assert len(tokens_of(pieces)) == 2


# --- stop texts -------------------------------------------------------------------------------------------


def _expected_stop(text, stops):
    ends = [(text.index(stop) + len(stop), text.index(stop), stop) for stop in stops if stop in text]
    return (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)


def test_stop_texts_end_it_and_no_part_of_one_is_let_out(engine):
    wanted = wish(engine, "Count from 1 to 20, with commas.", max_tokens=30)
    text = text_of(pieces_of(engine, wanted))
    assert len(text) > 20
    for stops in [
        (text[9:14],),
        (text[15:18], text[6:12]),
        (text[4:5],),
        ("never said",),
        (text[-3:] + "!",),
    ]:
        pieces = pieces_of(
            engine, wish(engine, "Count from 1 to 20, with commas.", max_tokens=30, stop=stops)
        )
        before, met = _expected_stop(text, stops)
        assert (text_of(pieces), pieces[-1].stop) == (before, met)
        assert (pieces[-1].end == "stop") == (met is not None)


# --- constraints ------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "roles": {"type": "array", "items": {"enum": ["cook", "clerk"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "roles"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=3)])
def test_json_is_valid_against_its_schema(engine, sampling):
    constraint = Constraint("json", PERSON)
    wanted = wish(engine, "Who are you?", sampling=sampling, max_tokens=200, constraint=constraint)
    pieces = pieces_of(engine, wanted)
    assert pieces[-1].end == "eos"
    jsonschema.validate(json.loads(text_of(pieces)), PERSON)


@pytest.mark.parametrize(
    "constraint",
    [Constraint("choice", ("a sentence of some length",)), Constraint("json", {"const": {"x": [1, "y"]}})],
)
def test_what_is_cut_off_is_told_from_what_just_fits(engine, constraint):
    whole = pieces_of(engine, wish(engine, constraint=constraint, max_tokens=60))
    needed = len(tokens_of(whole))
    fits = pieces_of(engine, wish(engine, constraint=constraint, max_tokens=needed))
    cut = pieces_of(engine, wish(engine, constraint=constraint, max_tokens=needed - 1))
    assert (fits[-1].end, text_of(fits)) == ("eos", text_of(whole))
    assert (cut[-1].end, len(tokens_of(cut))) == ("length", needed - 1)


def test_only_choices_are_chosen(engine):
    choices = ("red wine", "red", "no, never", "日本")
    for seed in range(6):
        sampling = Sampling(temperature=2.0, seed=seed)
        constraint = Constraint("choice", choices)
        pieces = pieces_of(engine, wish(engine, sampling=sampling, constraint=constraint, max_tokens=20))
        assert (text_of(pieces) in choices, pieces[-1].end) == (True, "eos")


def test_biases_of_tokens(engine):
    greedy = Sampling(temperature=0)
    plain = tokens_of(pieces_of(engine, wish(engine, sampling=greedy, max_tokens=6)))
    first, wanted = plain[0], plain[0] + 1
    without = Sampling(temperature=0, bias=((first, -100.0),))
    assert tokens_of(pieces_of(engine, wish(engine, sampling=without, max_tokens=1)))[0] != first
    always = Sampling(temperature=0, bias=((wanted, 100.0),))
    assert set(tokens_of(pieces_of(engine, wish(engine, sampling=always, max_tokens=6)))) == {wanted}
    nothing = Sampling(temperature=0, bias=((first, 0.0),))
    assert tokens_of(pieces_of(engine, wish(engine, sampling=nothing, max_tokens=6))) == plain
    with pytest.raises(InvalidRequestError, match="no token 10000000"):
        pieces_of(engine, wish(engine, sampling=Sampling(bias=((10_000_000, 1.0),))))


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "[0-9]{2}/[0-9]{2}/[0-9]{4}"),
        Constraint("lark", "start: DAY /\\// DAY /\\// YEAR\nDAY: /[0-9]{2}/\nYEAR: /[0-9]{4}/"),
        Constraint("gbnf", 'root ::= two "/" two "/" two two\ntwo ::= [0-9] [0-9]'),
    ],
)
def test_expressions_and_grammars_are_kept(engine, constraint):
    pieces = pieces_of(engine, wish(engine, "When?", constraint=constraint))
    assert re.fullmatch("[0-9]{2}/[0-9]{2}/[0-9]{4}", text_of(pieces))
    assert pieces[-1].end == "eos"


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [
        (Constraint("json", {"type": "array", "uniqueItems": True}), UnsupportedError),
        (Constraint("gbnf", "root ::= ("), UnsupportedError),
        (Constraint("gbnf", 'start ::= "a"'), UnsupportedError),
        (Constraint("gbnf", 'root ::= root "a"'), UnsupportedError),
        (Constraint("gbnf", " "), InvalidRequestError),
        (Constraint("gbnf", '%llguidance {}\nstart: "a"'), InvalidRequestError),
    ],
)
def test_what_cannot_be_enforced_is_refused(engine, constraint, kind):
    """llama.cpp itself would answer as if there were no constraint when llguidance refuses one."""
    with pytest.raises(kind):
        pieces_of(engine, wish(engine, constraint=constraint))


# --- characters -------------------------------------------------------------------------------------------

SCRIPTS = {
    "Latin": "Žluťoučký kůň",
    "Greek": "Ξεσκεπάζω τὴν",
    "Cyrillic": "Съешь ещё",
    "Armenian": "Բարեւ աշխարհ",
    "Hebrew": "שָׁלוֹם עוֹלָם",
    "Arabic": "مرحبًا بالعالم",
    "Devanagari": "नमस्ते दुनिया",
    "Bengali": "ওহে বিশ্ব",
    "Tamil": "வணக்கம் உலகம்",
    "Telugu": "హలో ప్రపంచం",
    "Thai": "สวัสดีชาวโลก",
    "Tibetan": "འཛམ་གླིང",
    "Myanmar": "မင်္ဂလာပါ",
    "Georgian": "გამარჯობა",
    "Hangul": "안녕하세요 세계",
    "Ethiopic": "ሰላም ልዑል",
    "Khmer": "សួស្តី",
    "Hiragana": "こんにちは世界",
    "Han": "你好，世界",
    "Emoji": "👩‍👩‍👧 🇫🇷 👍🏽",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_character_is_broken_in_any_script(engine, script):
    text = SCRIPTS[script]
    pieces = pieces_of(engine, wish(engine, "Hello", constraint=Constraint("choice", (text,)), max_tokens=80))
    assert text_of(pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert engine.detokenize(tokens_of(pieces)) == text
    assert pieces[-1].end == "eos"


def test_a_character_that_is_cut_off_is_left_out(engine):
    constraint = Constraint("choice", (SCRIPTS["Han"],))
    whole = tokens_of(pieces_of(engine, wish(engine, constraint=constraint, max_tokens=80)))
    for most in range(1, 6):
        pieces = pieces_of(engine, wish(engine, constraint=constraint, max_tokens=most))
        tokens = tokens_of(pieces)
        assert SCRIPTS["Han"].startswith(text_of(pieces))
        assert tokens == whole[: len(tokens)]
        assert (engine.detokenize(tokens), pieces[-1].end) == (text_of(pieces), "length")


# --- log-probabilities ------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_tokens(engine):
    pieces = pieces_of(engine, wish(engine, max_tokens=6, logprobs=3))
    for piece in pieces:
        assert tuple(told.id for told in piece.logprobs) == piece.tokens
        for told in piece.logprobs:
            assert engine.detokenize([told.id]) == told.token == bytes(told.bytes).decode()
            assert len(told.top) == 3
            assert (told.top[0].id, told.top[0].logprob) == (told.id, told.logprob)
            assert told.logprob <= 0
            assert [other.logprob for other in told.top] == sorted(
                (o.logprob for o in told.top), reverse=True
            )
    only = pieces_of(engine, wish(engine, max_tokens=2, logprobs=0))
    assert [told.top for piece in only for told in piece.logprobs] == [(), ()]


# --- many at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [2, 4])
def test_together_they_say_what_each_says_alone(engine, many):
    questions = [
        "Name three colours.",
        "What is the capital of France?",
        "Count to ten.",
        "Why is the sky blue?",
    ]
    wanted = [wish(engine, question, max_tokens=12) for question in questions[:many]]
    alone = [text_of(pieces_of(engine, one)) for one in wanted]

    async def together():
        return await asyncio.gather(*(all_of(engine, one) for one in wanted))

    assert [text_of(pieces) for pieces in asyncio.run(together())] == alone


def test_more_than_slots_and_queue_hold_are_refused_and_the_others_served_in_turn(engine):
    async def play():
        order, refused = [], []

        async def ask(number):
            try:
                await all_of(engine, wish(engine, f"Question {number}", max_tokens=3))
                order.append(number)
            except OverloadedError:
                refused.append(number)

        await asyncio.gather(*(ask(number) for number in range(SLOTS + QUEUE + 3)))
        return order, refused

    order, refused = asyncio.run(play())
    assert refused == list(range(SLOTS + QUEUE, SLOTS + QUEUE + 3))
    assert sorted(order) == list(range(SLOTS + QUEUE))
    # Nobody is overtaken by one who came more than a round of slots later.
    assert all(abs(place - number) < 2 * SLOTS for place, number in enumerate(order))


# --- cancelling -------------------------------------------------------------------------------------------


def _busy(engine):
    """Slots that the server itself calls busy."""
    connection = engine._desk._connection()
    connection.request("GET", "/slots", headers={"Authorization": f"Bearer {engine._desk._key}"})
    slots = json.loads(connection.getresponse().read())
    connection.close()
    return [slot["id"] for slot in slots if slot["is_processing"]]


def test_closing_the_stream_frees_the_slot(engine):
    async def play():
        prompt = chat(engine, "Write a very long story.")
        for _ in range(SLOTS + 1):  # a slot that stays busy would be missed at the last round
            wanted = Completion(prompt, max_tokens=900, sampling=GREEDY)
            async with aclosing(engine.complete(wanted)) as stream:
                assert (await anext(stream)).end is None
        pieces = await all_of(engine, wish(engine, "Hi", max_tokens=2))
        return pieces[-1].end

    assert asyncio.run(play()) == "length"
    assert _busy(engine) == []


def _runs(engine):
    """How often the server has run the model: a token of each answer, or a batch of prompts."""
    told = engine._server.handle_metrics()
    return int(re.search(r"^llamacpp:n_decode_total (\d+)$", told, re.MULTILINE)[1])


async def _idle(engine):
    """Waits until the server runs nothing."""
    while engine._running or await asyncio.to_thread(_busy, engine):
        await asyncio.sleep(0)


def test_what_nobody_wants_any_more_is_not_computed(engine):
    """By the server's own count: after the last piece that was read, it made a few tokens, and not 900."""

    async def play():
        before, made = _runs(engine), 0
        story = Completion(chat(engine, "Write a very long story."), max_tokens=900, sampling=GREEDY)
        async with aclosing(engine.complete(story)) as stream:
            async for piece in stream:
                made += len(piece.tokens)
                if made >= 8:
                    break
        await _idle(engine)
        return _runs(engine) - before - made

    assert asyncio.run(play()) < 100  # two, where this program gets the processor at once


def test_who_waits_gets_the_place_while_the_others_go_on(engine):
    async def play():
        made = [0] * SLOTS
        answering = asyncio.Event()

        async def tell(place):
            story = wish(engine, f"{place}. Write a very long story.", max_tokens=400)
            async with aclosing(engine.complete(story)) as stream:
                async for piece in stream:
                    made[place] += len(piece.tokens)
                    if all(made):
                        answering.set()

        tasks = [asyncio.create_task(tell(place)) for place in range(SLOTS)]
        await answering.wait()
        newcomer = engine.complete(wish(engine, "Who are you?", max_tokens=400))
        first = asyncio.create_task(anext(newcomer))
        while made[0] < 5:  # all places are taken: nothing for who waits
            await asyncio.sleep(0)
        assert not first.done()
        tasks[0].cancel()
        assert (await first).end is None
        others = [task.done() for task in tasks[1:]]
        await newcomer.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await _idle(engine)
        return others

    assert asyncio.run(play()) == [False] * (SLOTS - 1)


def test_cancelling_while_the_prompt_is_read_stops_the_reading(engine, monkeypatch):
    """The server computes a batch, tells of it, and is told to stop: far before the prompt's end."""
    told = []
    read = Reading.read

    async def play():
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def noted(reading, chunk):
            if (progress := chunk.get("prompt_progress")) is not None:
                told.append(progress["processed"])
                loop.call_soon_threadsafe(begun.set)
            return read(reading, chunk)

        monkeypatch.setattr(Reading, "read", noted)
        before = _runs(engine)
        prompt = engine.tokenize(" ".join(map(str, range(400))))[: CONTEXT - 8]
        task = asyncio.create_task(all_of(engine, Completion(prompt, max_tokens=2, sampling=GREEDY)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(prompt) > BATCH
        monkeypatch.undo()
        await _idle(engine)
        assert _runs(engine) - before <= 2  # the batch that was told of, and one that had begun
        await all_of(engine, wish(engine, "Hi", max_tokens=1))

    asyncio.run(play())
    assert max(told) <= BATCH
    assert _busy(engine) == []


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (1,) * CONTEXT}, f"{CONTEXT} tokens"),
        ({"prompt": (10**6,)}, "invalid tokens"),
        ({"stop": ("a", "")}, "empty stop text"),
    ],
)
def test_a_request_that_cannot_be_is_refused(engine, fields, told):
    with pytest.raises(InvalidRequestError, match=told):
        pieces_of(engine, wish(engine, **fields))


def test_an_answer_ends_with_the_context(engine):
    prompt = engine.tokenize("word " * CONTEXT, special=False)[: CONTEXT - 5]
    pieces = pieces_of(engine, Completion(prompt, max_tokens=50, sampling=GREEDY))
    assert pieces[-1].end in ("length", "eos")
    assert len(tokens_of(pieces)) <= 5


def test_it_has_no_embeddings_unless_loaded_for_them(engine):
    with pytest.raises(UnsupportedError, match="not loaded for embeddings"):
        asyncio.run(engine.embed(["a"]))


@pytest.mark.parametrize("content", [None, b"", b"no weights at all, just words", "half"])
def test_what_is_no_model_is_refused(tmp_path, smollm2, content):
    file = tmp_path / "model.gguf"
    if content == "half":
        with open(smollm2, "rb") as source:
            file.write_bytes(source.read(8 << 20))
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(StudioloError, match=r"model\.gguf"):
        LlamaCpp(file, context=256, threads=1)


# --- the place it listens at ------------------------------------------------------------------------------


def _listening(pid):
    """Inodes of the TCP sockets that the process listens on (Linux)."""
    own = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return {fields[1] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in own}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_port_is_opened_and_nobody_else_may_enter(engine):
    assert _listening(os.getpid()) == set()
    path = Path(engine._desk._address.removeprefix("unix://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_without_the_key_it_answers_nobody(engine):
    desk = Desk(engine._desk._address, "guessed")
    with pytest.raises(LanguageError, match=r"(?i)invalid api key"):
        desk.ask("/tokenize", {"content": "a"})


def test_where_there_are_no_local_sockets_it_takes_a_port(smollm2, monkeypatch):
    with monkeypatch.context() as patched:
        patched.delattr(socket, "AF_UNIX")
        engine = LlamaCpp(smollm2, context=256, slots=1, threads=1)
    try:
        assert engine._desk._address.startswith("http://127.0.0.1:")
        assert engine.detokenize(engine.tokenize("a port")) == "a port"
    finally:
        asyncio.run(engine.close())


# --- the end ----------------------------------------------------------------------------------------------


def _resident_mb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closing_frees_memory_and_folder(smollm2):
    after = []
    for _ in range(4):
        engine = LlamaCpp(smollm2, context=512, slots=2, threads=1)
        folder = Path(engine._folder.name)
        pieces_of(engine, wish(engine, max_tokens=2))
        loaded = _resident_mb()
        asyncio.run(engine.close())
        after.append(_resident_mb())
        assert not folder.exists()
        assert loaded - after[-1] > 50  # the file has 94 MB
    assert after[-1] - after[0] < 30


def test_closing_ends_what_runs_and_what_waits(smollm2):
    async def play():
        engine = await LlamaCpp.open(smollm2, context=512, slots=1, pool=512, threads=1)
        running = engine.complete(wish(engine, max_tokens=400))
        await anext(running)
        waiting = asyncio.create_task(all_of(engine, wish(engine, max_tokens=400)))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(LanguageError, match="closed"):
            await waiting
        with pytest.raises(LanguageError, match="closed"):
            await all_of(engine, wish_tokens())
        await running.aclose()
        await engine.close()

    def wish_tokens():
        return Completion((1, 2, 3), max_tokens=2)

    asyncio.run(play())


_LEFT_OPEN = """
import asyncio, sys
from studiolo.language.engines.completer import Completion
from studiolo.language.engines.llamacpp import LlamaCpp
async def main():
    stream = engine.complete(Completion(engine.tokenize("Once upon a time"), max_tokens=400))
    await anext(stream)
    print("begun", flush=True)
engine = LlamaCpp(sys.argv[1], context=512, slots=1, threads=1)
asyncio.run(main())
"""


def test_a_program_that_forgets_to_close_ends_all_the_same(smollm2):
    done = subprocess.run(
        [sys.executable, "-c", _LEFT_OPEN, str(smollm2)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr


# --- embeddings -------------------------------------------------------------------------------------------


def test_loaded_for_embeddings_it_gives_unit_vectors_and_answers_nothing(smollm2):
    async def play():
        engine = await LlamaCpp.open(smollm2, context=256, slots=2, threads=1, embedding=True)
        try:
            assert (engine.capabilities.embeddings, engine.capabilities.grammar) == (True, False)
            same, other, again = await engine.embed(["A cat.", "The stock market fell today.", "A cat."])
            assert await engine.embed([]) == []
            with pytest.raises(UnsupportedError, match="answers nothing"):
                await all_of(engine, Completion((1, 2), max_tokens=1))
            with pytest.raises(InvalidRequestError):
                await engine.embed(["word " * 400])
        finally:
            await engine.close()
        return same, other, again

    same, other, again = asyncio.run(play())
    assert sum(value * value for value in same) == pytest.approx(1, abs=1e-4)
    assert same == pytest.approx(again, abs=1e-4)
    assert sum(a * b for a, b in zip(same, other, strict=True)) < 0.99


# --- several models in one process ------------------------------------------------------------------------


def test_models_with_other_vocabularies_come_and_go(smollm2, tmp_path):
    """llama.cpp alone ends the process when a second model comes to lie where the first one was."""
    for number, words in enumerate([(), ("one",), ("one", "two")]):
        write_useless_model(tmp_path / f"{number}.gguf", words=words)

    async def play():
        for path in (tmp_path / "0.gguf", smollm2, tmp_path / "1.gguf", tmp_path / "2.gguf", smollm2):
            engine = await LlamaCpp.open(path, context=64, slots=1, threads=1)
            constraint = Constraint("choice", ("it is 5", "日本"))
            pieces = await all_of(engine, Completion((1,), max_tokens=30, constraint=constraint))
            assert text_of(pieces) in constraint.rule
            await engine.close()

    asyncio.run(play())


def test_two_models_at_once_keep_to_their_own_vocabularies(engine, tmp_path):
    write_useless_model(tmp_path / "other.gguf", words=("one", "two"))

    async def play():
        other = await LlamaCpp.open(tmp_path / "other.gguf", context=64, slots=2, threads=1)
        constraint = Constraint("regex", "[a-d]{3}, [0-9]{2} 日")
        wanted = Completion((1,), max_tokens=40, constraint=constraint)
        try:
            return await asyncio.gather(*(all_of(one, wanted) for one in (engine, other) * 3))
        finally:
            await other.close()

    for pieces in asyncio.run(play()):
        assert re.fullmatch("[a-d]{3}, [0-9]{2} 日", text_of(pieces))


def test_a_sentencepiece_vocabulary_without_a_template(tmp_path):
    write_useless_model(tmp_path / "plain.gguf", words=("▁the", "日"))
    engine = LlamaCpp(tmp_path / "plain.gguf", context=64, slots=1, threads=1)
    try:
        assert engine.template is None
        assert engine.special_tokens["eos_token"] == "</s>"
        constraint = Constraint("choice", ("a 日本",))
        pieces = pieces_of(engine, Completion((1,), max_tokens=30, constraint=constraint))
        assert (text_of(pieces), pieces[-1].end) == ("a 日本", "eos")
        assert engine.detokenize(tokens_of(pieces)).strip() == "a 日本"
    finally:
        asyncio.run(engine.close())


def test_a_vocabulary_that_llguidance_cannot_read_is_not_constrained(tmp_path):
    """Compared with what llama.cpp does by itself: it lets through what the grammar does not."""
    write_useless_model(tmp_path / "spaces.gguf", words=("▁a", "▁b", "▁1"), space_before=True)
    engine = LlamaCpp(tmp_path / "spaces.gguf", context=64, slots=1, threads=1)
    try:
        grammar = '%llguidance {}\nstart: "a b 1"'
        body = {"prompt": [1], "max_tokens": 12, "temperature": 0, "grammar": grammar}
        assert engine._server.handle_completions(body)["choices"][0]["text"] != "a b 1"
        assert not engine.capabilities.grammar
        with pytest.raises(UnsupportedError, match="vocabulary"):
            pieces_of(engine, Completion((1,), max_tokens=5, constraint=Constraint("choice", ("a",))))
        gbnf = Constraint("gbnf", 'root ::= "a b"')
        assert text_of(pieces_of(engine, Completion((1,), max_tokens=9, constraint=gbnf))) == "a b"
    finally:
        asyncio.run(engine.close())
