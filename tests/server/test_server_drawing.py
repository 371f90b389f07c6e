"""Pictures within an answer, on a scripted model."""

from __future__ import annotations

import asyncio

import pytest
from talking import Exactly, done

from language.stub import CHATML, Script, StubCompleter
from studiolo.language.collect import collected
from studiolo.language.conversation import (
    Call,
    Data,
    Delta,
    FinishReason,
    GenerationConfig,
    Request,
    Response,
    Text,
    Tool,
    ToolChoice,
    ToolMode,
    model,
    user,
)  # fmt: skip
from studiolo.language.engines.local import LocalEngine
from studiolo.language.errors import UnsupportedError
from studiolo.server.drawing import DRAW, MOST_PICTURES, Drawing, Subject

WEATHER = Tool(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
MOON = f'{{"name": "{DRAW}", "arguments": {{"prompt": "a photo of [V] fox on the moon"}}}}'
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'


class Studio:
    """A drawing engine on a scripted model, and what it drew."""

    def __init__(self, *scripts: Script, noun: str | None = "fox") -> None:
        self.drawn: list[str] = []
        self.completer = StubCompleter(scripts, template=CHATML)
        self.engine = Drawing(LocalEngine(self.completer), Subject("rex", noun, self.draw))

    async def draw(self, prompt: str) -> bytes:
        self.drawn.append(prompt)
        return f"PNG {len(self.drawn)}".encode()

    def ask(self, *modalities: str, **fields: object) -> Response:
        config = GenerationConfig(modalities=modalities or ("text",), max_tokens=400)
        request = Request(
            **{"model": "m", "contents": (user("Draw rex on the moon."),), "config": config} | fields
        )
        return asyncio.run(collected(self.engine.generate(request)))

    @property
    def prompts(self) -> list[str]:
        return [self.completer.detokenize(seen.completion.prompt) for seen in self.completer.seen]


def kinds(response: Response) -> list[str]:
    return [part.kind for part in response.candidates[0].content.parts]


def picture(number: int) -> Data:
    return Data(media_type="image/png", data=f"PNG {number}".encode())


def test_the_model_may_draw_and_goes_on_speaking():
    studio = Studio("Here.\n<tool_call>", MOON, "", "Do you like it?")
    response = studio.ask()
    assert studio.drawn == ["a photo of [V] fox on the moon"]
    parts = response.candidates[0].content.parts
    assert [part for part in parts if isinstance(part, Data)] == [picture(1)]
    assert response.text == "Here.Do you like it?"
    assert response.candidates[0].finish is FinishReason.STOP
    assert not response.calls  # that one was ours


def test_it_need_not():
    studio = Studio("I had rather not.")
    assert studio.ask().text == "I had rather not."
    assert studio.drawn == []


def test_who_asks_for_a_picture_alone_gets_nothing_else():
    studio = Studio(MOON)
    assert kinds(studio.ask("image")) == ["data"]
    assert len(studio.completer.seen) == 1


def test_who_asks_for_text_too_is_told_of_the_picture():
    studio = Studio(MOON, "A fox on the moon.")
    response = studio.ask("text", "image")
    assert kinds(response)[0] == "data"
    assert response.text.endswith("A fox on the moon.")


def test_usage_is_the_sum_of_the_rounds():
    studio = Studio("<tool_call>", MOON, "", "Good.")
    usage = studio.ask().usage
    made = sum(len(seen.tokens) for seen in studio.completer.seen)
    assert usage.answer == made
    assert usage.prompt > len(studio.completer.seen[0].completion.prompt)


def test_whatever_the_model_would_say_the_subject_is_in_the_prompt():
    studio = Studio("I cannot draw, I am only a language model with very much to say of it.")
    studio.ask("image")
    (prompt,) = studio.drawn
    assert "[V] fox" in prompt
    assert len(prompt) < 120


def test_pictures_end_somewhere():
    studio = Studio(*("<tool_call>", MOON, "") * 9)
    response = studio.ask()
    assert kinds(response).count("data") == MOST_PICTURES
    assert response.candidates[0].finish is FinishReason.STOP


def test_pictures_end_somewhere_also_of_a_model_that_asks_for_many_at_once():
    """And that goes on asking when it may not, as some upstreams do."""
    calls = [Delta(part=Call(name=DRAW, arguments={"prompt": f"a fox {n}"}, id=str(n))) for n in range(3)]
    prompts: list[str] = []

    async def draw(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"PNG"

    engine = Drawing(
        Exactly([*calls, done()], [*calls, done()], [*calls, done()]), Subject("rex", None, draw)
    )
    request = Request(model="m", contents=(user("Draw foxes."),))
    response = asyncio.run(collected(engine.generate(request)))
    assert kinds(response).count("data") == len(prompts) == MOST_PICTURES
    assert response.candidates[0].finish is FinishReason.STOP
    assert response.notes == (f"an answer has at most {MOST_PICTURES} pictures",)
    assert response.usage.answer == 3 * 2  # of all rounds


def test_the_clients_functions_are_the_clients():
    studio = Studio("<tool_call>", MOON, "\n<tool_call>", ROME, "")
    response = studio.ask(tools=(WEATHER,))
    assert [call.name for call in response.calls] == ["weather"]
    assert kinds(response).count("data") == 1
    assert response.candidates[0].finish is FinishReason.STOP


def test_no_functions_means_no_pictures():
    studio = Studio("Words.")
    studio.ask(tool_choice=ToolChoice(mode=ToolMode.NONE))
    assert DRAW not in studio.prompts[0]


def test_a_prompt_that_was_cut_off_is_not_drawn():
    studio = Studio(MOON)
    response = studio.ask("image", config=GenerationConfig(modalities=("image",), max_tokens=20))
    assert studio.drawn == []
    assert response.candidates[0].finish is FinishReason.LENGTH


def test_pictures_of_earlier_answers_are_told_to_a_model_that_cannot_see():
    studio = Studio("Yes.")
    turns = (user("Draw rex."), model(Text(text="Here: "), picture(1)), user("Is it red?"))
    assert studio.ask(contents=turns).text == "Yes."
    assert "Here: (a picture)" in studio.prompts[0]


def test_what_cannot_be_is_refused():
    with pytest.raises(UnsupportedError, match="one candidate"):
        Studio("x").ask(config=GenerationConfig(candidates=2))
    with pytest.raises(UnsupportedError, match="our own"):
        Studio("x").ask(tools=(Tool(name=DRAW),))
