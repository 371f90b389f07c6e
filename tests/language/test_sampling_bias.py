"""Biases of tokens, where torch draws: added to the logits before anything else, as OpenAI's API has it."""

from __future__ import annotations

import pytest
import torch

from studiolo.language.conversation import Format, GenerationConfig, Request, Tool, user
from studiolo.language.engines.completer import Sampling, check_bias
from studiolo.language.engines.gemini_body import body_of
from studiolo.language.engines.sampling import Sampler
from studiolo.language.engines.upstream import usable_tools
from studiolo.language.errors import InvalidRequestError, UnsupportedError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_the_likeliest_is_that_of_the_sum():
    for bias, token in (((), 0), (((0, -100.0),), 1), (((3, 3.5),), 3), (((0, -1.5), (2, 0.9)), 1)):
        assert Sampler(Sampling(temperature=0, bias=bias)).draw(LOGITS, (), None) == token


def test_chances_are_those_of_the_sum():
    sampler = Sampler(Sampling(seed=1, bias=((2, 1.0), (0, -1.0))))
    drawn = torch.tensor([sampler.draw(LOGITS, (), None) for _ in range(4000)])
    wanted = torch.softmax(LOGITS + torch.tensor([-1.0, 0.0, 1.0, 0.0]), -1)
    got = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(got, wanted, atol=4 * (0.25 / 4000) ** 0.5)


def test_what_is_not_allowed_stays_so():
    allowed = torch.tensor([True, True, False, True])
    sampler = Sampler(Sampling(temperature=0, bias=((2, 100.0),)))
    assert sampler.draw(LOGITS, (), allowed) == 0


def test_tokens_that_there_are_none_of():
    check_bias(Sampling(bias=((3, 1.0),)), 4)
    with pytest.raises(InvalidRequestError, match="no token 4"):
        check_bias(Sampling(bias=((4, 1.0),)), 4)


def test_upstreams_refuse_what_they_cannot_do():
    asked = Request(model="m", contents=(user("?"),), config=GenerationConfig(bias=((1, 1.0),)))
    with pytest.raises(UnsupportedError, match="no bias"):
        body_of(asked)
    sql = Tool(name="sql", grammar='start: "a"')
    with pytest.raises(UnsupportedError, match="no function to a grammar"):
        usable_tools(asked.model_copy(update={"tools": (sql,), "config": GenerationConfig(format=Format())}))
