"""What ``lorada train`` goes through for one row: nothing is read or checked twice."""

import json
import sys

import pytest
from folders import llama_folder, rows_file
from programs import printed

# Functions that are entered from the command to the adapter, and their files. In a process of its
# own, because attention that other tests have changed goes through more files.
TRACED = """
import json, sys
from collections import Counter
from pathlib import Path
import lorada, lorada.cli, lorada.tuners
import lorada.training.train as training
source, files, calls, real = str(Path(lorada.__file__).parent), set(), Counter(), training.train

def note(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(source) and code.co_flags & 2:
        files.add(code.co_filename)  # a function's: not a module's or a class's body
        calls[code.co_name] += 1

def train(*given, **options):
    trained = real(*given, **options)
    sys.setprofile(None)
    return trained

training.train = train
sys.argv[0] = "lorada"
sys.setprofile(note)
lorada.cli.main()
print(json.dumps([calls, sorted(files)]))
"""
# The YAML is that of the recipe and of one override.
TIMES = {"read_yaml": 2, "read_recipe": 1, "recipe_of": 1, "complete": 1, "method_named": 1}
# Who follows the row has to read these; a map adds those of its equations and of attention.
MOST_FILES = {"lora": 68, "lora+lmam": 83}


@pytest.mark.more
@pytest.mark.parametrize("method", MOST_FILES)
def test_one_row_is_trained_on_with_one_parse_and_one_check_of_its_recipe(method, tmp_path):
    model, rows = llama_folder(tmp_path / "llama"), rows_file(tmp_path / "rows.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {rows}\nmax_length: 32\ntraining: {{max_steps: 1}}\n")
    words = ["train", recipe, "--method", method, "report_to=[]", "--output", tmp_path / "run"]
    calls, files = json.loads(printed(sys.executable, "-c", TRACED, *words).splitlines()[-1])
    assert {name: calls[name] for name in TIMES} == TIMES
    assert calls["checked"] == len(["max_steps", "report_to"])
    assert len(files) <= MOST_FILES[method], files
