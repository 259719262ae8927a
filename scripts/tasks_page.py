"""Writes docs/tasks.md: what TASKS has, and conventions that decide whether numbers compare.

python scripts/tasks_page.py
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lorada.data.task import Protocol, Source, Task
from lorada.data.tasks import TASKS

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
HEADER = """\
# Tasks

What `lorada train --task NAME` can be given. `lorada tasks` lists the names; `protocol=NAME` says
how the model is asked (by default the first that suits its kind) and `train_on=NAME` what it learns
from (by default the first). `make pages` writes this page.

Rows come from the hub (or from GitHub, where it says so), or with `--data-dir DIR` (or
`LORADA_DATA`) from `DIR/folder/split.jsonl.gz` with the same fields. Metrics are in percent unless
they say otherwise, the main one first.
"""
ADDRESS = re.compile(
    r"https://(?P<host>huggingface\.co/datasets|raw\.githubusercontent\.com)/(?P<name>[^/]+/[^/]+)/"
    r"(resolve/)?main/(?P<file>.+)"
)
# What is not in TASKS: conventions that decide whether numbers can be compared.
NOTES = {
    "commonsense": """\
- `generate` is LLM-Adapters' protocol: its prompt, indented as there and with other white space in
  training than in evaluation, loss on prompt and answer (`loss_on=response` for the answer alone),
  four beams. The first option named, in lower case, is the answer; `unparsable` is the share of
  outputs that name none, which count as wrong.
- `likelihood` is QuanTA's: the question on one line, then `Answer:`, and for every option of its
  `Answer format:` the sentence " the correct answer is …."; the mean log-probability of the
  sentence's tokens decides, in training and in evaluation. An option is always chosen, so
  `unparsable` is 0 by construction. With held-out rows (`dev_rows=N`) each evaluation while
  training measures accuracy, and `metric_for_best_model=accuracy` selects by it, as QuanTA does.
- Scores by the two protocols do not compare, and published tables mix them.
- All rows come from LLM-Adapters' repository. Its BoolQ has no passages.
- `commonsense_170k` are the training rows of all eight tasks, from LLM-Adapters' repository; in a
  local folder `commonsense_mix` stands for it.""",
    "arithmetic": """\
- `generate` is LLM-Adapters' protocol, as above with 256 new tokens. `quanta` is QuanTA's: the
  rationale on one line behind `Answer:`, loss on it alone, greedy, up to a newline. Here the end
  token follows the newline in training.
- `exact`: the last number (commas left out) is within 1e-3 of the right one; of AQuA, the first
  capital A–E is the right one, even in a word. `unparsable`: no number or letter.
- `quanta_one_sided` is what QuanTA's evaluation code counts: **any number that is not smaller than
  the right one, and any output without a number, is taken as correct**. It is there to compare with
  numbers made that way, and says little about a model. For AQuA it is `exact`, with ten letters.
- All rows come from LLM-Adapters' repository, for the hub has no MAWPS in this form. Locally
  `math10k_rebuilt` has the make-up of MATH10K; on the hub both names are MATH10K itself, which has
  some problems of the MAWPS test set.
- The `output` of test rows is what ChatGPT once answered; it is never used.""",
    "GLUE": """\
- From the hub all of the validation split is scored; from a local folder what its file holds, which
  may be a part. `eval_rows=N` takes a random part of either.
- The paper says accuracy throughout; its CoLA and STS-B numbers are Matthews' and Pearson's
  correlations.
- The head that a task puts on a model trains, and so does whatever of it the model's checkpoint
  lacks (DeBERTa's have no pooler). It is saved with the adapter and never counted. In the code of
  He et al., whose settings many methods have here, it stays as it was drawn: `train_head=false`.
- A model that is a classifier already keeps the order of its own classes, if their names are those
  of the task.""",
    "Long sequence": """\
- Scored are 128 documents of the test split, the same for every seed (`eval_rows=N` for another
  number; all, where a local file has fewer). LongLoRA took 128 too, but which ones is not known, so
  only numbers on one sample compare.
- The documents are joined, each with an end token. Windows of every length are full, begin every
  256 tokens, and are scored whole: a token has as little context as one other and as much as all
  before it in the window. `eval_windows=N` takes N of each length, spread evenly.
- `eval_lengths=[…]` asks for other lengths. Those of the protocol that are longer than the model's
  context are left out with a warning; `rope_factor=2` stretches rotary positions to twice as many,
  in training and in scoring.
- Training cuts the joined documents into windows of `max_length` tokens (by default 512).
- A map lies on the first tokens of a window unless `lmam.align=end` puts it on the last, as Table 7
  has it.
- `redpajama` are the samples of its eleven subsets, for which `redpajama_arxiv` stands in a local
  folder; `proof_pile` is the first of the hub's 21 training files.""",
}


def elsewhere(one: Source) -> str:
    """Where the rows are but for a local folder: the data set, and its split or its files."""
    if "://" not in one.hub:
        name = " ".join(filter(None, (one.hub, one.config)))
        return f"hub: {name}, split {one.split}" if name else "local only"
    found = [ADDRESS.fullmatch(address) for address in one.hub.split()]
    ((host, name),) = {(match["host"], match["name"]) for match in found}
    site = "hub" if host == "huggingface.co/datasets" else "GitHub"
    return f"{site}: {name}, {' '.join(match['file'] for match in found)}"


def source(name: str, one: Source) -> str:
    where = f"`{one.folder}/{one.split}` ({elsewhere(one)})"
    return f"{name}: {where}" if name else where


def tasks(group: dict[str, Task]) -> Iterator[str]:
    yield "| task | what | learns from | is scored on |"
    yield "|---|---|---|---|"
    for name, task in group.items():
        train, test = (
            "<br>".join(source(key, one) for key, one in sources.items()) or "your own file"
            for sources in (task.train, task.test)
        )
        yield f"| {name} | {task.summary} | {train} | {test} |"


def score_of(protocol: Protocol) -> str:
    """The first sentence of its scoring function's documentation."""
    function = protocol.score
    while isinstance(function, partial):
        function = function.func
    return (function.__doc__ or function.__name__).strip().split("\n\n")[0].replace("``", "`")


def protocols(group: dict[str, Task]) -> Iterator[str]:
    yield "| protocol | tasks | rows | models | loss on | generation | score |"
    yield "|---|---|---|---|---|---|---|"
    found: dict[tuple[str, ...], list[str]] = {}
    for task, name, p in ((t, n, p) for t in group for n, p in group[t].protocols.items()):
        settings = ", ".join(f"{key}={value!r}" for key, value in p.generation.items())
        kinds = ", ".join(p.kinds).replace("_", "–")
        key = (name, p.form, kinds, p.loss_on, settings.replace("|", "\\|"), score_of(p))
        found.setdefault(key, []).append(task)
    for (name, *rest), names in found.items():
        which = "all" if len(names) == len(group) else ", ".join(names)
        yield f"| {name} | {which} | " + " | ".join(cell or "—" for cell in rest) + " |"


def page() -> str:
    """docs/tasks.md."""
    groups: dict[str, dict[str, Task]] = {}
    for name, task in TASKS.items():
        groups.setdefault(task.benchmark, {})[name] = task
    parts = [HEADER]
    for benchmark, group in groups.items():
        notes = f"\n{NOTES[benchmark]}\n" if benchmark in NOTES else ""
        tables = "\n".join([*tasks(group), "", *protocols(group)])
        parts.append(f"## {benchmark[0].upper()}{benchmark[1:]}\n\n{tables}\n{notes}")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
