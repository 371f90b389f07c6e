"""What does the default classifier catch, what does it miss, and what does it take for harm that is none?

    python benchmarks/safety_lexicon.py

Judges the texts of safety_texts.json and prints, for each threshold, how many harmful texts would be withheld
(by the threshold of their own harm) and how many harmless ones (by that of any). With --show: which ones go
wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studiolo.language.conversation import Harm, Threshold
from studiolo.language.safety.judging import Judgement, blocks
from studiolo.language.safety.lexicon import judged

TEXTS = Path(__file__).with_name("safety_texts.json")
MANNERS = ("direct", "fresh", "indirect")
THRESHOLDS = (Threshold.LOW, Threshold.MEDIUM, Threshold.HIGH)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, default=TEXTS)
    parser.add_argument("--show", action="store_true", help="list what goes wrong at the threshold MEDIUM")
    options = parser.parse_args()
    texts = json.loads(options.texts.read_text(encoding="utf-8"))
    print(table(texts, judged))
    if options.show:
        print("\n".join(mistakes(texts, judged)))


def table(texts: Mapping[str, Any], judge: Callable[[str], Judgement]) -> str:
    """Withheld of all, by harm and threshold."""
    lines = [
        "| texts | number | withheld at LOW | at MEDIUM | at HIGH |",
        "|---|---|---|---|---|",
    ]
    rows = [(f"{harm}, {manner}", Harm(harm), of) for manner in MANNERS for harm, of in texts[manner].items()]
    for name, harm, of in rows:
        lines.append(_row(name, of, lambda text, at, harm=harm: withheld(judge(text), (harm,), at)))
    for name, of in texts["harmless"].items():
        lines.append(_row(name, of, lambda text, at: withheld(judge(text), Harm, at)))
    return "\n".join(lines)


def withheld(judgement: Judgement, harms: Any, threshold: Threshold) -> bool:
    return judgement.always is not None or any(
        blocks(judgement.scores.get(harm, 0.0), threshold) for harm in harms
    )


def mistakes(texts: Mapping[str, Any], judge: Callable[[str], Judgement]) -> list[str]:
    lines = ["", "Missed at MEDIUM:"]
    for manner in MANNERS:
        for harm, of in texts[manner].items():
            lines += [
                f"  {harm}, {manner}: {text}"
                for text in of
                if not withheld(judge(text), (Harm(harm),), Threshold.MEDIUM)
            ]
    lines += ["", "Withheld at MEDIUM without need:"]
    harmless = [text for of in texts["harmless"].values() for text in of]
    lines += [f"  {text}" for text in harmless if withheld(judge(text), Harm, Threshold.MEDIUM)]
    return lines


def _row(name: str, texts: Sequence[str], is_withheld: Callable[[str, Threshold], bool]) -> str:
    counts = [sum(is_withheld(text, threshold) for text in texts) for threshold in THRESHOLDS]
    return f"| {name} | {len(texts)} | " + " | ".join(map(str, counts)) + " |"


if __name__ == "__main__":
    main()
