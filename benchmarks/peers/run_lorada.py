"""Run a command of lorada, ``train`` or ``evaluate``, as a user does, and leave stamps.

    python run_lorada.py train --method lora --model DIR --data FILE --output RUN
    python run_lorada.py evaluate RUN --data FILE

Besides the stamps of the work there is when the command line was there, and when torch and
transformers were imported, which come first here so that they can be told apart from the rest.
"""

import sys
from typing import Any

import stamps

import lorada.cli
from lorada.cli.shared import importing

began = stamps.now()
with importing(quiet=True):  # as every command imports them
    import torch  # noqa: F401

    after_torch = stamps.now()
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
after_transformers = stamps.now()


def watch_scoring() -> stamps.Stamps:
    """Time how long rows are scored: from texts to answers, without loading the model."""
    from lorada.inference import evaluate

    found: stamps.Stamps = {}
    score = evaluate.score

    def stamped_score(*arguments: Any, **options: Any) -> Any:
        found["begin"] = stamps.now()
        scored = score(*arguments, **options)
        found["end"] = stamps.now()
        found["answers"] = [line["answer"] for line in scored[1]]
        return scored

    evaluate.score = stamped_score
    return found


def main() -> None:
    watch = {"train": stamps.watch_training, "evaluate": watch_scoring}[sys.argv[1]]
    found = watch()
    sys.argv[0] = "lorada"
    try:
        lorada.cli.main()
    finally:
        imports = {"began": began, "torch": after_torch, "transformers": after_transformers}
        stamps.write({**found, "imports": imports}, "torch", "transformers", "peft")


if __name__ == "__main__":
    main()
