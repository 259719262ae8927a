"""What ``lorada train`` goes through for one row: nothing is read or checked twice."""

import sys
from collections import Counter

from folders import llama_folder, rows_file
from paths import ROOT

import lorada.training.train as training

SOURCE = str(ROOT / "src" / "lorada")
# The YAML is that of the recipe and of one override; a method is looked up for its parts' names,
# and when it is built.
TIMES = {"read_yaml": 2, "read_recipe": 1, "recipe_of": 1, "complete": 1, "method_named": 2}
MOST_FILES = 57  # who follows the row from the command to the adapter has to read these


def test_one_row_is_trained_on_with_one_parse_and_one_check_of_its_recipe(
    works, tmp_path, monkeypatch
):
    model, rows = llama_folder(tmp_path / "llama"), rows_file(tmp_path / "rows.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {rows}\nmax_length: 32\ntraining: {{max_steps: 1}}\n")
    files, calls, real = set(), Counter(), training.train

    def note(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE) and code.co_flags & 2:
            files.add(code.co_filename)  # a function's: not a module's or a class's body
            calls[code.co_name] += 1

    def train(*given, **options):
        trained = real(*given, **options)
        sys.setprofile(None)
        return trained

    monkeypatch.setattr(training, "train", train)
    sys.setprofile(note)
    try:
        works("train", recipe, "report_to=[]", "--output", tmp_path / "run")
    finally:
        sys.setprofile(None)
    assert {name: calls[name] for name in TIMES} == TIMES
    assert calls["checked"] == len(["max_steps", "report_to"])
    assert len(files) <= MOST_FILES, sorted(files)
