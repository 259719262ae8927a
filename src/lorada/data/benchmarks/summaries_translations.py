"""Writing one text from another: XSum's summaries, and WMT16's translations into Romanian.

An encoder–decoder reads the source and writes the target. A decoder gets the source in a prompt;
only the first line of its output that is not empty counts.

Settings: He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning" (2022).
XSum: Narayan et al. (2018). WMT16: Bojar et al. (2016).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lorada.data.scoring.text_metrics import bleu, rouge
from lorada.data.task import Metrics, Protocol, Score, Source, Task
from lorada.support.row_sources import Row

# The token that a decoder starts with does not count as new.
SUMMARY = {"num_beams": 6, "max_new_tokens": 60, "min_new_tokens": 10, "no_repeat_ngram_size": 3}
TRANSLATION = {"num_beams": 5, "max_new_tokens": 200}


def _article(row: Row) -> Row:
    return {"prompt": row["document"], "response": row["summary"]}


def _sentence(row: Row) -> Row:
    return {"prompt": row["translation"]["en"], "response": row["translation"]["ro"]}


def _prompt(row: Row, convert: Callable[[Row], Row], end: str, begin: str = "") -> Row:
    """A row for a decoder: its source between two texts, then the target."""
    pair = convert(row)
    return {
        "prompt": f"{begin}{pair['prompt']}{end}",
        "response": f" {pair['response']}",
        "eval_response": pair["response"],
    }


# A decoder may go on writing after its answer. docs/tasks.md prints the next docstring.
def _of_first_lines(outputs: list[Any], rows: list[Row], score: Score) -> Metrics:
    """The score of ``seq2seq`` for the first line of each output that is not empty."""
    first_lines = []
    for output in outputs:
        lines = output.strip().splitlines() or [""]
        first_lines.append(lines[0].strip())
    return score(first_lines, rows)


def _xsum(split: str) -> Source:
    return Source("xsum/xsum", split, "EdinburghNLP/xsum")


def _wmt16(split: str) -> Source:
    return Source("wmt16/ro-en", split, "wmt/wmt16", "ro-en")


WRITING = {
    "xsum": Task(
        summary="a news article in one sentence; ROUGE-1, ROUGE-2 and ROUGE-L",
        benchmark="XSum",
        protocols={
            "seq2seq": Protocol(
                "prompt", ("encoder_decoder",), _article, rouge,
                generation=SUMMARY, target_length=128,
            ),
            "prompt": Protocol(
                "prompt", ("decoder",), partial(_prompt, convert=_article, end="\nSummary:"),
                partial(_of_first_lines, score=rouge),
                generation=SUMMARY, target_length=128,
            ),
        },
        train={"own": _xsum("train")},
        test={"": _xsum("test")},
    ),
    "wmt16_en_ro": Task(
        summary="English news into Romanian; BLEU, with and without Romanian normalisation",
        benchmark="MT",
        protocols={
            "seq2seq": Protocol(
                "prompt", ("encoder_decoder",), _sentence, bleu,
                generation=TRANSLATION, target_length=150, languages=("en_XX", "ro_RO"),
            ),
            "prompt": Protocol(
                "prompt", ("decoder",), partial(
                    _prompt, convert=_sentence, end="\nRomanian:",
                    begin="Translate English to Romanian.\nEnglish: ",
                ), partial(_of_first_lines, score=bleu),
                generation=TRANSLATION, target_length=150,
            ),
        },
        train={
            "own": _wmt16("train"),
            # Other pairs with the same fields, for machines without WMT16's 610,320 pairs.
            "ro_sts": Source("wmt16/ro-en_proxy_ro-sts", "train", ""),
            "tatoeba": Source("wmt16/ro-en_proxy_tatoeba", "train", ""),
        },
        test={"": _wmt16("test")},
    ),
}  # fmt: skip
