"""What the batch of `charged_worker` takes."""

from __future__ import annotations

from studiolo.language.conversation import Usage
from studiolo.language.prices import Price

ITEMS = 6
USAGE = Usage(prompt=10, cached=4, answer=2)
PRICE = Price(prompt=1e-3, answer=2e-3)
DOLLARS = (10 * 1e-3 + 2 * 2e-3) / 2
"""Of one item: half of what it costs alone."""
