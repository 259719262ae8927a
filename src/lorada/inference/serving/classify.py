"""``/v1/classify`` in vLLM's form: the classes of texts, by runs that are classifiers."""

import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorada.inference.load import Run, load_run
from lorada.inference.serving.refusals import Refused
from lorada.runs.data.dataset import collator
from lorada.runs.folder.same_base import adapter_names


class Classifier:
    """A run that labels texts, one request at a time.

    Attributes:
        name: the name that it answers to.
        described: what the list of models says of it.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.labels, self._run = name, run.labels, run
        self.described = {"base": run.recipe.model, "method": run.recipe.method}
        self._pad, self._turn = collator(run.form, run.tokenizer), threading.Lock()

    def tokens(self, texts: list[str]) -> list[dict[str, list[int]]]:
        """What the model reads of each text.

        Raises:
            Refused: for no text, or one that is too long, or has no token that the model knows.
        """
        if not texts:
            raise Refused(400, "there is no input", param="input")
        room = self._run.recipe.max_length
        with self._turn:
            read = self._run.tokenizer(texts, verbose=False)
        for number, ids in enumerate(read["input_ids"]):
            if not ids:
                raise Refused(400, f"input {number} has no token of this model", param="input")
            if len(ids) > room:
                said = f"input {number} has {len(ids)} tokens; there is room for {room}"
                raise Refused(400, said, code="context_length_exceeded", param="input")
        return [dict(zip(read, each, strict=True)) for each in zip(*read.values(), strict=True)]

    @torch.no_grad()
    def classify(self, tokens: list[dict[str, list[int]]]) -> dict[str, Any]:
        """The response to texts, whose probabilities are in the order of the run's classes."""
        data = []
        size = self._run.recipe.eval_batch_size
        with self._turn:
            for start in range(0, len(tokens), size):
                batch = self._pad(tokens[start : start + size]).to(self._run.device)
                data += self._run.model(**batch).logits.float().softmax(-1).tolist()
        read = sum(len(each["input_ids"]) for each in tokens)
        return {
            "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
            "model": self.name,
            "data": [
                {
                    "index": i, "label": self.labels[probs.index(max(probs))], "probs": probs,
                    "num_classes": len(probs),
                }
                for i, probs in enumerate(data)
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read},
        }  # fmt: skip


def open_classifiers(
    folders: Sequence[Path], *, trust_remote_code: bool = False
) -> dict[str, Classifier]:
    """Load finished runs, each with a base of its own, by the names of their folders.

    Raises:
        ValueError: for a run that is not finished, or is given twice.
    """
    return {
        name: Classifier(name, load_run(folder, trust_remote_code=trust_remote_code))
        for name, folder in zip(adapter_names(folders), folders, strict=True)
    }
