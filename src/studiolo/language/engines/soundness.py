"""What llguidance takes for enforced although it is not quite: mended in the schema, or refused.

Found with the official JSON Schema Test Suite (benchmarks/json_schemas.py).
"""

from __future__ import annotations

import re
from typing import Any

from studiolo.language.engines.schema_tree import Schema, changed, walk

_MEANING_LEFT = {"whitespace_flexible", "whitespace_pattern", "item_separator", "key_separator"}
"""Options of llguidance ("x-guidance") that change how the JSON looks, and not what is valid."""

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][48]|[13579][26]|[2468]0)00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_NO_LEAP_SECOND = "[0-9]{2}:[0-9]{2}:[0-5][0-9]"
_REAL = {
    "date": f"^{_DATE}$",
    "time": f"^{_NO_LEAP_SECOND}",
    "date-time": f"^{_DATE}[Tt ]{_NO_LEAP_SECOND}",
}
"""llguidance has 29 days in every February, and a leap second (RFC 3339, 5.7) in every minute. Here no time
has one, and no year is 0000, which Python's dates do not know."""


_IN_URIS = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = "//(?:[A-Za-z0-9._~-]+@)?[A-Za-z0-9._~-]+(?::[0-9]{1,5})?"
_URI = (
    f"^[A-Za-z][A-Za-z0-9+.-]*:(?:{_AUTHORITY}(?:/{_IN_URIS}*)*|/?{_IN_URIS}+(?:/{_IN_URIS}*)*)"
    f"(?:[?](?:{_IN_URIS}|[/?])*)?(?:#(?:{_IN_URIS}|[/?])*)?$"
)
"""A URI (RFC 3986) without addresses of IPv6. llguidance's own is too large for the one in llama.cpp, which
loses the constraint at once."""


def mended(schema: Any) -> Any:
    """The schema with what llguidance is to be told besides, or instead."""
    return changed(schema, lambda inner: _with_real_days(_with_plain_uris(_with_ecma_space(inner))))


def _with_plain_uris(schema: Schema) -> Schema:
    if schema.get("format") != "uri":
        return schema
    return _with_pattern({key: value for key, value in schema.items() if key != "format"}, _URI)


def _with_ecma_space(schema: Schema) -> Schema:
    r"""Patterns are regular expressions of ECMA-262, where U+FEFF is white space and U+0085 is not. \s is
    given neither of them, since other readers of the same pattern have them the other way round."""
    if not isinstance(pattern := schema.get("pattern"), str):
        return schema
    return {**schema, "pattern": re.sub(r"\\(.)", _ecma_space, pattern, flags=re.DOTALL)}


def _ecma_space(escape: re.Match[str]) -> str:
    spaces = "[^\\S\x85]"
    return {"s": spaces, "S": f"[^{spaces}\ufeff]"}.get(escape[1], escape[0])


def _with_real_days(schema: Schema) -> Schema:
    pattern = _REAL.get(str(schema.get("format")))
    return schema if pattern is None else _with_pattern(schema, pattern)


def _with_pattern(schema: Schema, pattern: str) -> Schema:
    """The schema with one pattern more."""
    if "pattern" not in schema:
        return {**schema, "pattern": pattern}
    return {**schema, "allOf": [*schema.get("allOf", ()), {"pattern": pattern}]}


def loophole(schema: Any) -> str:
    """Why answers could be invalid under a schema that llguidance accepts; empty if they cannot."""
    for place, inner in walk(schema, "schema"):
        options = inner.get("x-guidance")
        if isinstance(options, dict) and (weaker := sorted(options.keys() - _MEANING_LEFT)):
            return f"{place} has the option {weaker[0]!r}, under which answers may be invalid"
        if _counts_repeated_names(inner):
            return f"minProperties at {place}: names that are not listed may come twice, and count once"
    return ""


def _counts_repeated_names(schema: Schema) -> bool:
    """Of names that the schema does not list, one may come again, and JSON keeps the last value."""
    unlisted = schema.get("additionalProperties") is not False or schema.get("patternProperties")
    least = schema.get("minProperties", 0)
    return bool(unlisted) and least - len(set(schema.get("required", ()))) > 1
