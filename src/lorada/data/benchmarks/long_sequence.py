"""Long sequences: trained on RedPajama, scored by perplexity on the proof-pile.

Documents are joined, each with an end token. Training cuts the stream into windows of
``max_length`` tokens. Evaluation slides a window of each context length over it:

    perplexity = exp( mean over windows of ( mean loss of the window's tokens ) )

A window of n tokens begins every 256 tokens. Each of its n - 1 predictions is scored, from all the
tokens before it in the window.

Source: Chen et al., "LongLoRA" (2023). It took 128 documents of the proof-pile's test split, and
does not say which, so only numbers on the same sample can be compared with each other.
"""

import math

from lorada.data.task import Metrics, Protocol, Source, Task
from lorada.support.row_sources import Row

Losses = tuple[int, list[float]]  # context length in tokens, mean loss of each window in nats

SAMPLE = "https://huggingface.co/datasets/togethercomputer/RedPajama-Data-1T-Sample/resolve/main"
CRAWLS = ("cc_2019-30", "cc_2020-05", "cc_2021-04", "cc_2022-05", "cc_2023-06")
SUBSETS = (*CRAWLS, "c4", "github", "arxiv", "book", "wikipedia", "stackexchange")
PILE = "https://huggingface.co/datasets/hoskinson-center/proof-pile/resolve/main"


def window_starts(tokens: int, length: int, stride: int, most: int | None = None) -> list[int]:
    """Where windows in a stream of tokens begin: every ``stride`` tokens, full windows only.

    Of them ``most`` are taken, evenly spread from the first on; None for all.
    """
    count = (tokens - length) // stride + 1 if tokens >= length else 0
    if count == 0:
        raise ValueError(
            f"the texts have {tokens} tokens together, which fills no window of {length}: take a "
            "shorter one with eval_lengths=[…]"
        )
    taken_count = count if most is None else min(most, count)
    return [number * count // taken_count * stride for number in range(taken_count)]


def perplexities(answers: list[Losses], rows: list[Row]) -> Metrics:
    """Perplexity at each context length, and the number of windows that it is the mean of."""
    perplexity_of = {}
    window_counts = {}
    for length, losses in answers:
        perplexity_of[f"perplexity_{length}"] = math.exp(sum(losses) / len(losses))
        window_counts[f"windows_{length}"] = len(losses)
    return {**perplexity_of, **window_counts}  # the first is the main metric


def _text(row: Row) -> Row:
    return {"text": row["text"]}


LONG_SEQUENCE = {
    "proof_pile": Task(
        summary="perplexity of mathematical texts at 2048, 4096 and 8192 tokens",
        benchmark="Long sequence",
        protocols={
            "perplexity": Protocol(
                "text", ("decoder",), _text, perplexities, lengths=(2048, 4096, 8192), rows=128
            )
        },
        train={
            "redpajama": Source(
                "long_sequence/redpajama_arxiv",
                "train",
                " ".join(f"{SAMPLE}/{name}_sample.jsonl" for name in SUBSETS),
            ),
            # The first of 21 files.
            "proof_pile": Source(
                "long_sequence/proof_pile_books",
                "train",
                f"{PILE}/train/proofpile_train_0.jsonl.gz",
            ),
        },
        test={
            "": Source(
                "long_sequence/proof_pile_books", "test", f"{PILE}/test/proofpile_test.jsonl.gz"
            )
        },
    )
}
