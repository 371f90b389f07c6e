"""The table of hosted models: what it must hold, and how a wrong file of the user is told."""

from __future__ import annotations

import asyncio
import datetime

import pytest
import yaml

from language.loopback import Asked, Loopback, Reply
from studiolo.errors import StudioloError
from studiolo.language.catalog import SHIPPED, load_catalog, router_of
from studiolo.language.collect import collected
from studiolo.language.conversation import Request, Usage, user
from studiolo.language.errors import AuthenticationError
from studiolo.language.prices import cost
from studiolo.language.routing import Answered
from studiolo.models import known

PROMPT_PRICES = {
    "gemini-2.0-flash-lite": 7.5e-8,
    "gemini-2.5-flash": 3.0e-7,
    "gemini-3.1-flash-lite-preview": 2.5e-7,
    "gemma-3-12b": 4.0e-8,
    "gemma-4-31b": 1.3e-7,
}


def test_the_models_their_prices_and_where_they_answer():
    catalog = load_catalog()
    assert catalog.dated >= datetime.date(2026, 11, 21)
    assert set(catalog.models) == set(PROMPT_PRICES)
    for name, price in PROMPT_PRICES.items():
        known = catalog.models[name]
        places = {place.upstream: place for place in known.routes}
        assert {"google", "openrouter"} <= places.keys()
        assert ("local" in places) == name.startswith("gemma")
        assert places["openrouter"].price.prompt == price
        if name.startswith("gemini"):
            assert places["google"].price.prompt == price
        for place in places.values():
            if place.price and place.price.batch:  # a rule of the provider: batches cost half
                assert place.price.batch.prompt == pytest.approx(place.price.prompt / 2)
                assert place.price.batch.answer == pytest.approx(place.price.answer / 2)


def test_what_is_unverified_is_the_name_of_something_that_is_there():
    for one in load_catalog().models.values():
        for place in one.routes:
            for dotted in place.unverified:
                value = one if dotted == "max_output" else place
                for part in dotted.split("."):
                    value = getattr(value, part)
                assert value is not None, dotted


def test_a_request_costs_what_the_table_says():
    """A thousand prompt tokens, 400 of them cached, 100 thoughts and 50 of the answer, reckoned by hand."""
    place = load_catalog().models["gemini-2.5-flash"].routes[0]
    usage = Usage(prompt=1000, cached=400, answer=50, thoughts=100)
    assert cost(usage, place.price) == pytest.approx((600 * 0.30 + 400 * 0.03 + 150 * 2.50) / 1e6)
    assert cost(usage, place.price, batch=True) == pytest.approx((600 * 0.15 + 400 * 0.03 + 150 * 1.25) / 1e6)


def write(home, value) -> None:
    (home / "catalog.yaml").write_text(
        value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8"
    )


def test_the_file_of_the_user_goes_over_it_and_reaches_its_server(studiolo_home, monkeypatch):
    async def handler(asked: Asked, reply: Reply) -> None:
        choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        tokens = {"prompt_tokens": 1000, "completion_tokens": 0}
        await reply.stream({"choices": [choice]}, {"choices": [], "usage": tokens}, "[DONE]")
        await reply.end()

    monkeypatch.setenv("MY_KEY", "sesame")
    told: list[Answered] = []

    async def go():
        async with Loopback(handler) as server:
            upstream = {
                "kind": "openai",
                "dialect": "vllm",
                "base_url": f"{server.url}/v1",
                "keys": ["MY_KEY"],
            }
            mine = {"context": 4096, "aliases": ["m"],
                    "routes": [{"upstream": "here", "model": "org/mine",
                                "price": {"prompt": 2e-6, "answer": 0}}]}  # fmt: skip
            write(
                studiolo_home,
                {
                    "upstreams": {"here": upstream},
                    "models": {"mine": mine, "gemma-4-31b": mine | {"aliases": []}},
                },
            )
            catalog = load_catalog()
            assert set(catalog.models) == {*PROMPT_PRICES, "mine"}
            router = router_of(catalog, on_answer=told.append)
            assert router.engine("gemma-4-31b").capabilities.context == 4096
            response = await collected(router.generate(Request(model="m", contents=(user("hello"),))))
            await router.close()
            return response, server.asked

    response, asked = asyncio.run(go())
    assert (response.text, response.model) == ("hi", "mine")
    assert (asked[0].body["model"], asked[0].headers["authorization"]) == ("org/mine", "Bearer sesame")
    assert told[0].dollars == pytest.approx(2e-3)


ROUTE = {"upstream": "google", "model": "x"}


@pytest.mark.parametrize(
    ("written", "key", "why"),
    [
        ("models: [", "catalog.yaml", "not readable as YAML"),
        ("- a\n", "catalog.yaml", "keys with their values"),
        ({"models": ["a"]}, "models", "names with their descriptions"),
        ({"models": {"a": {"context": 1}}}, "models.a.routes", "Field required"),
        ({"models": {"a": {"context": -1, "routes": [ROUTE]}}}, "models.a.context", "it is -1"),
        ({"models": {"a": {"context": 1, "routes": [ROUTE | {"upstream": "nowhere"}]}}},
         "the file", "no upstream 'nowhere'"),
        ({"models": {"a": {"context": 1, "routes": [ROUTE | {"prise": 1}]}}},
         "models.a.routes.0.prise", "Extra inputs"),
        ({"models": {"a": {"context": 1, "aliases": ["gemma-3-12b"], "routes": [ROUTE]}}},
         "the file", "two models: gemma-3-12b"),
        ({"upstreams": {"a": {"kind": "openai"}}}, "upstreams.a", "needs its base_url"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_with_its_key(studiolo_home, written, key, why):
    write(studiolo_home, written)
    with pytest.raises(StudioloError) as caught:
        load_catalog()
    assert key in caught.value.where
    assert why in caught.value.message


def test_a_key_written_into_the_file_is_not_repeated_in_the_error(studiolo_home):
    write(studiolo_home, {"upstreams": {"a": {"kind": "gemini", "key": "sk-secret"}}})
    with pytest.raises(StudioloError) as caught:
        load_catalog()
    assert "sk-secret" not in str(caught.value)


def test_prices_are_read_as_numbers_however_they_are_written(studiolo_home):
    write(
        studiolo_home,
        "models: {a: {context: 1, routes: [{upstream: google, model: x, price: {prompt: 3e-7, answer: 1}}]}}",
    )
    assert load_catalog().models["a"].routes[0].price.prompt == 3e-7


def test_local_weights_are_a_route_where_they_can_be_opened():
    catalog = load_catalog()
    upstreams = [route.upstream for route in router_of(catalog).resolve("gemma-3-12b")[1]]
    assert upstreams == ["openrouter", "google"]
    opened = []
    local = router_of(catalog, open_local=opened.append).resolve("gemma-3-12b-it")[1][-1]
    local.open()
    assert (local.upstream, opened) == ("local", ["gemma-3-12b"])
    named = {
        place.model for one in catalog.models.values() for place in one.routes if place.upstream == "local"
    }
    assert named <= set(known.table().weights)  # what `studiolo models pull` would fetch


def test_without_a_key_the_error_names_the_variables(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    async def go():
        await collected(
            router_of(load_catalog()).generate(Request(model="gemini-2.5-flash", contents=(user("a"),)))
        )

    with pytest.raises(AuthenticationError, match="GEMINI_API_KEY or GOOGLE_API_KEY"):
        asyncio.run(go())


def test_the_shipped_file_is_in_the_package():
    assert SHIPPED.is_file()
