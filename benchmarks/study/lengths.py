"""The scores on SST-2 by the length of the sentence; looked at after the hypotheses were tested."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from run import HEAD, LORA, PRINTED, PRINTED_ON_LORA, SMALL

from lorada.compare.report.read import CandidateResult

BINS = ((5, 8), (9, 12), (13, 18), (19, 99))  # words
SHOWN = (HEAD, PRINTED, SMALL, LORA, PRINTED_ON_LORA)


def table(
    methods: dict[str, CandidateResult], rows: Path, title: Callable[[str], str]
) -> Iterator[str]:
    """Accuracy in each range of lengths, as Markdown.

    Args:
        methods: the candidates of SST-2.
        rows: the folder that ``rows.py`` wrote.
        title: the name of a method in tables.
    """
    train, held_out = (_words(rows / f"sst2_{part}.jsonl") for part in ("train", "test"))
    inside = [(held_out >= low) & (held_out <= high) for low, high in BINS]
    names = [f"{low} to {high}" if high < 99 else f"{low} and more" for low, high in BINS]
    yield "### SST-2 by length"
    yield ""
    words = f"{train.mean():.1f} words on average, held-out rows {held_out.mean():.1f}"
    yield f"Training rows have {words}. Accuracy by the words of the held-out row (no hypothesis:"
    yield "looked at afterwards):"
    yield ""
    yield f"| method | {' | '.join(names)} |"
    yield f"|---|{'--:|' * len(BINS)}"
    yield f"| rows | {' | '.join(str(each.sum()) for each in inside)} |"
    for method in SHOWN:
        if method in methods:
            scores = methods[method].scores
            cells = (f"{scores[:, each].mean():.1f}" for each in inside)
            yield f"| {title(method)} | {' | '.join(cells)} |"
    yield ""


def _words(path: Path) -> np.ndarray:
    lines = path.read_text(encoding="utf-8").splitlines()
    return np.array([len(json.loads(line)["text"].split()) for line in lines])
