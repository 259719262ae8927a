"""The models and rows of the runs that these tests use."""

import pytest
from folders import TURNS, bart_folder, bert_folder, llama_folder, rows_file


@pytest.fixture(scope="module")
def place(request, tmp_path_factory):
    """A folder of tiny models and rows, where ``folder`` trains the runs of the module.

    The module may say the sizes of its ``LLAMA`` and ``BERT``, and have other ``ROW_FILES``.
    """
    place = tmp_path_factory.mktemp("runs")
    llama_folder(place / "llama", **getattr(request.module, "LLAMA", {}))
    bert_folder(place / "bert", **getattr(request.module, "BERT", {}))
    bart_folder(place / "bart")
    labels = [{"text": "ab" * (i % 3 + 1), "label": "yn"[i % 2]} for i in range(9)]
    scores = [{"text": row["text"], "score": i % 3} for i, row in enumerate(labels)]
    files = {"rows": None, "turns": TURNS, "labels": labels, "scores": scores}
    for name, rows in {**files, **getattr(request.module, "ROW_FILES", {})}.items():
        rows_file(place / f"{name}.jsonl", rows)
    return place
