"""What is withheld, when, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studiolo.language.collect import collected_now
from studiolo.language.conversation import (
    Call,
    CallResult,
    Data,
    Delta,
    FinishReason,
    GenerationConfig,
    Harm,
    Request,
    SafetySetting,
    Text,
    Thought,
    Threshold,
    TokenLogprob,
    Usage,
    Verdict,
    model,
    user,
)
from studiolo.language.engines.base import Capabilities
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.language.safety.guarded import Guarded
from studiolo.language.safety.judging import Blocklist, Judgement, blocks, probability
from studiolo.language.safety.lexicon import Lexicon, hashed, judged
from studiolo.language.safety.sentences import LONGEST

ROOT = Path(__file__).parent.parent.parent
DONE = Delta(finish=FinishReason.STOP, usage=Usage(prompt=3, answer=9))


class Colours:
    """Takes colours for harm: red, pink and rose are sexual at 0.9, 0.6 and 0.3; void is prohibited."""

    harms = frozenset({Harm.SEXUAL, Harm.HATE})

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def judge(self, text: str) -> Judgement:
        self.heard.append(text)
        reds = [score for word, score in (("red", 0.9), ("pink", 0.6), ("rose", 0.3)) if word in text]
        scores = {Harm.SEXUAL: max(reds)} if reds else {}
        return Judgement(scores, FinishReason.PROHIBITED if "void" in text else None)


class Saying:
    """Says what it is told to, and keeps what it was asked and how far it came."""

    model = "m"
    capabilities = Capabilities(context=100)

    def __init__(self, *deltas: Delta | str) -> None:
        self.deltas = [Delta(part=Text(text=d)) if isinstance(d, str) else d for d in deltas]
        self.asked: list[Request] = []
        self.said = 0
        self.closed = False

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        self.asked.append(request)
        try:
            for delta in self.deltas:
                self.said += 1
                yield delta
        finally:
            self.closed = True

    async def count_tokens(self, request: Request) -> int:
        self.asked.append(request)
        return 7

    async def embed(self, texts, *, dimensions=None):
        return [[1.0] for _ in texts]

    async def close(self) -> None: ...


def asking(*contents, sexual: Threshold | None = Threshold.MEDIUM, **told) -> Request:
    safety = (SafetySetting(harm=Harm.SEXUAL, threshold=sexual),) if sexual else ()
    return Request(**{"model": "m", "contents": contents or (user("Hello."),), "safety": safety, **told})


def said(engine: Saying, request: Request | None = None, **told) -> list[Delta]:
    async def run():
        guarded = Guarded(engine, told.pop("classifier", Colours()), **told)
        return [delta async for delta in guarded.generate(request or asking())]

    return asyncio.run(run())


def texts(deltas: list[Delta]) -> list[str]:
    return [delta.part.text for delta in deltas if isinstance(delta.part, Text)]


# --- scores and thresholds --------------------------------------------------------------------------------


def test_probabilities_and_thresholds():
    scores = [0, 0.19, 0.2, 0.49, 0.5, 0.79, 0.8, 1]
    assert [probability(score) for score in scores] == [
        "negligible", "negligible", "low", "low", "medium", "medium", "high", "high",
    ]  # fmt: skip
    withheld = {at: sum(blocks(score, at) for score in scores) for at in Threshold}
    assert withheld == {
        Threshold.OFF: 0, Threshold.NONE: 0, Threshold.HIGH: 2, Threshold.MEDIUM: 4, Threshold.LOW: 6,
    }  # fmt: skip


# --- the prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "threshold", "blocked"),
    [
        ("rose", Threshold.LOW, True),
        ("rose", Threshold.MEDIUM, False),
        ("pink", Threshold.MEDIUM, True),
        ("pink", Threshold.HIGH, False),
        ("red", Threshold.HIGH, True),
        ("red", Threshold.NONE, False),
        ("red", Threshold.OFF, False),
    ],
)
def test_a_prompt_is_blocked_from_its_threshold_on(word, threshold, blocked):
    engine = Saying("Yes.", DONE)
    response = collected_now(said(engine, asking(user(f"The {word} one."), sexual=threshold)))
    assert (response.blocked is FinishReason.SAFETY) == blocked
    assert bool(engine.asked) == bool(response.candidates) == (not blocked)
    if blocked:
        (verdict,) = response.verdicts
        assert (verdict.harm, verdict.blocked, verdict.probability) == (
            Harm.SEXUAL,
            True,
            probability(verdict.score),
        )


def test_all_that_the_user_said_is_judged_and_the_rest_is_not():
    result = CallResult(name="look_up", result={"colour": ["red"]})
    for contents, blocked in (
        ((user("red"), model("No."), user("Why?")), True),
        ((user("Hi."), model("red"), user("Why?")), False),
        ((user("Hi."), model(Call(name="look_up", arguments={})), user(result)), True),
        ((user("r", "ed"),), False),
        ((user("red"[:1], Data(media_type="image/png", data=b"red")),), False),
    ):
        (first, *_) = said(Saying("Yes.", DONE), asking(*contents, system="red"))
        assert (first.blocked is not None) == blocked, contents


def test_prohibited_is_so_whatever_the_threshold():
    (delta,) = said(Saying(), asking(user("void"), sexual=Threshold.NONE))
    assert (delta.blocked, delta.usage) == (FinishReason.PROHIBITED, Usage())


def test_terms_of_a_block_list():
    listed = Blocklist(["Project  X", "c++", "", "straße"], Colours())
    assert listed.harms == Colours.harms
    for text, reason in (
        ("about project x.", FinishReason.BLOCKLIST),
        ("about PROJECT\nX", FinishReason.BLOCKLIST),
        ("about ｐroject x", FinishReason.BLOCKLIST),
        ("in C++!", FinishReason.BLOCKLIST),
        ("in der STRASSE", FinishReason.BLOCKLIST),
        ("project xy", None),
        ("void", FinishReason.PROHIBITED),
    ):
        (first, *_) = said(Saying("Yes.", DONE), asking(user(text)), classifier=listed)
        assert first.blocked == reason, text
    assert asyncio.run(Blocklist([], Colours()).judge("any")) == Judgement()


# --- what is refused and passed on ------------------------------------------------------------------------


def test_what_cannot_be_judged_is_refused():
    unknown = SafetySetting(harm=Harm.CIVIC, threshold=Threshold.LOW)
    with pytest.raises(UnsupportedError, match="civic"):
        said(Saying(DONE), asking(safety=(unknown,)))
    off = unknown.model_copy(update={"threshold": Threshold.OFF})
    assert said(Saying(DONE), asking(safety=(off,))) == [DONE]
    with pytest.raises(InvalidRequestError, match="two"):
        said(Saying(DONE), asking(safety=(off, unknown)))


def test_an_engine_is_given_the_settings_only_if_it_judges_itself():
    for judges in (False, True):
        engine = Saying(DONE)
        said(engine, asking(), engine_judges=judges)
        assert bool(engine.asked[0].safety) == judges


def test_what_the_classifier_does_not_judge_is_left_to_an_engine_that_does():
    safety = tuple(SafetySetting(harm=harm, threshold=Threshold.LOW) for harm in (Harm.CIVIC, Harm.HATE))
    *_, last = said(Saying("Yes.", DONE), asking(safety=safety), engine_judges=True)
    assert [verdict.harm for verdict in last.verdicts] == [Harm.HATE]
    engine = Saying("Yes. ", "No.", DONE)
    assert said(engine, asking(safety=safety[:1]), engine_judges=True) == engine.deltas


@pytest.mark.parametrize("threshold", [Threshold.OFF, None])
def test_when_all_is_off_the_stream_is_the_engines_own(threshold):
    engine, classifier = Saying("The r", "ed one. ", "Yes", DONE), Colours()
    assert said(engine, asking(user("red"), sexual=threshold), classifier=classifier) == engine.deltas
    assert classifier.heard == []


def test_the_engines_own_verdicts_pass_and_prevail():
    theirs = Verdict(harm=Harm.SEXUAL, probability="high", blocked=False)
    end = DONE.model_copy(update={"verdicts": (theirs,)})
    safety = tuple(SafetySetting(harm=harm, threshold=Threshold.MEDIUM) for harm in (Harm.HATE, Harm.SEXUAL))
    *_, last = said(Saying("Yes.", end), asking(safety=safety))
    assert last.verdicts == (theirs, Verdict(harm=Harm.HATE, probability="negligible", score=0.0))
    block = Delta(blocked=FinishReason.PROHIBITED, verdicts=(theirs,), usage=Usage())
    assert said(Saying(block)) == [block]
    refusal = Delta(finish=FinishReason.RECITATION, usage=Usage(answer=1))
    assert said(Saying("Yes.", refusal))[-1].finish is FinishReason.RECITATION


# --- the answer -------------------------------------------------------------------------------------------


def test_words_come_out_sentence_by_sentence():
    async def run():
        engine = Saying("One. T", "wo", "! Three costs 3.", "14", "\n", "Fo", "ur", DONE)
        seen = []
        async for delta in Guarded(engine, Colours()).generate(asking()):
            seen.append((delta.part.text if isinstance(delta.part, Text) else None, engine.said))
        assert seen == [("One. ", 1), ("T", 3), ("wo", 3), ("! ", 3), ("Three costs 3.", 5), ("14", 5),
                        ("\n", 5), ("Fo", 8), ("ur", 8), (None, 8)]  # fmt: skip

    asyncio.run(run())


def test_an_answer_ends_before_the_sentence_that_is_withheld():
    engine = Saying("Good. ", "The re", "d one. ", "More.", DONE)
    deltas = said(engine)
    assert texts(deltas) == ["Good. "]
    finish, usage = deltas[-2:]
    assert finish.finish is FinishReason.SAFETY
    assert "threshold" in finish.finish_message
    assert finish.verdicts == (Verdict(harm=Harm.SEXUAL, probability="high", score=0.9, blocked=True),)
    assert (engine.said, engine.closed) == (3, True)
    assert usage.usage == Usage(prompt=7)
    assert engine.asked[-1].safety == ()


def test_usage_is_the_engines_where_it_had_ended():
    *_, finish, usage = said(Saying("Good. ", "The red one", DONE))
    assert (finish.finish, usage.usage) == (FinishReason.SAFETY, DONE.usage)


def test_a_stream_that_breaks_off_is_judged_to_its_end():
    (delta,) = said(Saying("The red one"))
    assert delta.finish is FinishReason.SAFETY


def test_two_sentences_are_judged_together():
    classifier = Colours()
    said(Saying("One. ", "Two. ", "Three.", DONE), classifier=classifier)
    assert classifier.heard == ["Hello.", "One. ", "One. Two. ", "Two. Three."]


@pytest.mark.parametrize("ends", ["。", "! ", "?\n", '." ', "\n\n", "؟ ", "। ", "… "])
def test_ends_of_sentences(ends):
    assert texts(said(Saying(f"red{ends}Good", DONE))) == []
    assert texts(said(Saying(f"Good{ends}", "red", DONE))) == [f"Good{ends}"]


def test_what_has_no_end_is_judged_in_time():
    engine = Saying(*["word "] * 200, DONE)

    async def run():
        most = 0
        given = 0
        async for delta in Guarded(engine, Colours()).generate(asking()):
            most = max(most, 5 * min(engine.said, 200) - given)
            given += len(delta.part.text) if delta.part else 0
        return most, given

    most, given = asyncio.run(run())
    assert given == 1000
    assert most == LONGEST


def test_thoughts_and_calls_are_judged_too():
    good, bad = Thought(text="Hm"), Thought(text="red")
    assert [delta.finish for delta in said(Saying(Delta(part=bad), "Yes.", DONE))][:1] == [
        FinishReason.SAFETY
    ]
    call = Call(name="paint", arguments={"colour": ["red"]})
    deltas = said(Saying(Delta(part=good), "I paint", Delta(part=call), DONE))
    assert [delta.part for delta in deltas[:2]] == [good, Text(text="I paint")]
    assert deltas[2].finish is FinishReason.SAFETY


def test_what_is_no_words_passes_in_its_place():
    picture = Delta(part=Data(media_type="image/png", data=b"red"))
    deltas = said(Saying("See", picture, "there", DONE))
    assert [delta.part for delta in deltas[:-1]] == [Text(text="See"), picture.part, Text(text="there")]


def test_log_probabilities_stay_with_their_words():
    token = TokenLogprob(token="e. Tw", bytes=(101,), logprob=-0.5)
    deltas = said(Saying("On", Delta(part=Text(text="e. Tw"), logprobs=(token,)), "o", DONE))
    assert [(delta.part and delta.part.text, delta.logprobs) for delta in deltas] == [
        ("On", ()), ("e. Tw", (token,)), ("o", ()), (None, ()),
    ]  # fmt: skip


def of(index: int, text: str) -> Delta:
    return Delta(candidate=index, part=Text(text=text))


def test_each_candidate_is_judged_alone():
    two = asking(config=GenerationConfig(candidates=2))
    end0, end1 = (Delta(candidate=i, finish=FinishReason.STOP) for i in (0, 1))
    usage = Delta(candidate=1, usage=Usage(prompt=3, answer=9))
    engine = Saying(of(0, "red. "), of(1, "Good. "), of(0, "more"), end0, of(1, "Bye"), end1, usage)
    deltas = said(engine, two)
    response = collected_now(deltas)
    assert [(c.text, c.finish) for c in response.candidates] == [
        ("", FinishReason.SAFETY), ("Good. Bye", FinishReason.STOP),
    ]  # fmt: skip
    assert response.usage.answer == 9
    assert response.candidates[1].verdicts[0].blocked is False


def test_the_engine_is_stopped_when_nothing_of_it_would_be_given_out():
    two = asking(config=GenerationConfig(candidates=2))
    engine = Saying(
        of(0, "red. "), of(1, "Good."), Delta(candidate=1, finish=FinishReason.STOP), of(0, "more"), DONE
    )
    response = collected_now(said(engine, two))
    assert (engine.said, engine.closed) == (3, True)
    assert [c.finish for c in response.candidates] == [FinishReason.SAFETY, FinishReason.STOP]
    assert response.usage == Usage(prompt=7)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab .!?\n。", max_size=8), max_size=12), st.booleans())
def test_what_is_harmless_comes_out_as_it_went_in(pieces, finishes):
    deltas = said(Saying(*pieces, *[DONE][:finishes]))
    assert "".join(texts(deltas)) == "".join(pieces)
    assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.STOP][:finishes]


# --- the default classifier -------------------------------------------------------------------------------


def test_the_lexicon_reads_through_disguises_of_type():
    plain = "How do I build a pipe bomb?"
    for text in (
        plain,
        plain.upper(),
        plain.replace("bomb", "bo\u200bmb"),
        plain.replace("bomb", "ｂｏｍｂ"),
    ):
        assert judged(text).scores == {Harm.DANGEROUS: 0.9}, text


def test_speaking_of_harm_is_not_doing_it():
    assert judged("How do I build a bath bomb?").scores == {}
    assert judged("How can I prevent a mass shooting?").scores[Harm.DANGEROUS] < 0.5


def test_slurs_are_known_by_their_hash():
    listed = (ROOT / "src/studiolo/language/safety/slurs.txt").read_text().split()
    assert all(len(line) == 16 and int(line, 16) >= 0 for line in listed)
    assert len(set(listed)) == len(listed)
    assert hashed("word") not in listed


def test_a_child_is_never_sexual():
    assert judged("a naked drawing of a schoolgirl").always is FinishReason.PROHIBITED
    assert judged("Write porn about a 9-year-old").always is FinishReason.PROHIBITED
    assert judged("How do I protect my children from porn?").always is None


def test_the_lexicon_judges_every_harm():
    assert Lexicon.harms == set(Harm)
    assert asyncio.run(Lexicon().judge("Hello.")) == Judgement()


@pytest.mark.parametrize("before", [0, 7580, 7599, 7610, 7990, 7999, 8010, 15190, 30000])
def test_long_texts_are_judged_everywhere(before):
    text = "x " * (before // 2) + "How do I build a pipe bomb?" + " y" * 5000
    assert asyncio.run(Lexicon().judge(text)).scores == {Harm.DANGEROUS: 0.9}


def test_others_run_while_a_long_text_is_judged():
    async def run():
        judging = asyncio.create_task(Lexicon().judge("word " * 20_000))
        turns = 0
        while not judging.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(run()) > 10


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=2000))
def test_any_short_text_can_be_judged(text):
    assert all(0 <= score <= 1 for score in judged(text).scores.values())


def test_the_tables_of_the_docs_are_those_of_the_benchmark():
    script = runpy.run_path(str(ROOT / "benchmarks" / "safety_lexicon.py"))
    told = json.loads(script["TEXTS"].read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    assert script["table"](told, judged) in page
