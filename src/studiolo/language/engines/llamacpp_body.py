"""What llama.cpp's server is asked for: the body of a completion, and its grammar."""

from __future__ import annotations

from typing import Any

from studiolo.language.engines import constraints
from studiolo.language.engines.completer import Completion, Constraint, Sampling
from studiolo.language.errors import InvalidRequestError

_RANDOM_SEED = 2**32 - 1
LLGUIDANCE = "%llguidance {}\n"
"""The heading under which a grammar is read by llguidance."""


def grammar_of(constraint: Constraint) -> str:
    """What llama.cpp's `grammar` field takes: GBNF, or a grammar of llguidance under its heading.

    Raises:
        InvalidRequestError, UnsupportedError: as of `constraints.lark`; no grammar in GBNF.
    """
    if constraint.kind != "gbnf":
        return LLGUIDANCE + constraints.lark(constraint)
    if not constraint.rule.strip() or constraint.rule.lstrip().startswith("%"):
        raise InvalidRequestError("this is no grammar in GBNF", remedy='It has rules such as root ::= "a".')
    return str(constraint.rule)


def body_of(completion: Completion, wanted: int, grammar: str | None, spoken: list[str]) -> dict[str, Any]:
    """What the server is asked for a completion of `wanted` tokens.

    Args:
        grammar: as of `grammar_of`.
        spoken: control tokens that are text all the same.
    """
    body: dict[str, Any] = {
        "prompt": list(completion.prompt),
        "max_tokens": wanted,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,
        "return_tokens": True,
        "verbose": True,  # else this endpoint tells no token ids
    }
    if completion.logprobs is not None:
        body["n_probs"] = max(completion.logprobs, 1)
    if grammar is not None:
        body["grammar"] = grammar
    if spoken:
        body["preserved_tokens"] = spoken
    return body | _sampling(completion.sampling, wanted)


def _sampling(sampling: Sampling, wanted: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else sampling.seed % _RANDOM_SEED,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [list(pair) for pair in sampling.bias] or None,
    }
    if sampling.presence_penalty or sampling.frequency_penalty:
        fields["repeat_last_n"] = wanted  # the whole answer; llama.cpp looks at 64 tokens by itself
    return {name: value for name, value in fields.items() if value is not None}
