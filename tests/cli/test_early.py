"""A mistake that names, files and folders show is answered before torch is there."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from folders import rows_file

MANY = """
import contextlib, io, json, sys, time, lorada_cli
found = {}
for case, words in json.load(sys.stdin).items():
    sys.argv, said, code = ["lorada", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            lorada_cli.main()
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "peft") if name in sys.modules]
    found[case] = [code, said.getvalue(), heavy]
print(json.dumps(found))
"""

MODEL, ROWS = ["--model", "llama"], ["--data", "rows.jsonl"]
TRAIN = ["train", *MODEL, *ROWS, "--output", "new"]
COMPARED = [*MODEL, *ROWS, "--held-out", "rows.jsonl", "--output", "new"]
MISTAKES = {
    "no prompt": (["generate", "run"], "Missing"),
    "no such command": (["no-such-command"], "No such command"),
    "no such recipe": (["train", "none.yaml"], "no recipe at none.yaml"),
    "broken recipe": (["train", "broken.yaml"], "broken.yaml line 3 is not YAML"),
    "no pair": ([*TRAIN, "rank=4", "fast"], "'fast' is not key=value"),
    "no such method": ([*TRAIN, "--method", "lroa"], "unknown method 'lroa'; did you mean lora"),
    "no such task": ([*TRAIN, "--task", "jsnl"], "unknown task 'jsnl'; did you mean jsonl"),
    "no such model": (["train", "--model", "smollm", *ROWS, "--output", "new"], "did you mean smo"),
    "no model folder": (
        [*TRAIN, "--method", "ia3", "--model", "./none"],
        "no model folder at ./none: give a folder that holds a model, its id on the hub, or ",
    ),
    "a seed too large": (
        [*TRAIN, "seed=99999999999999999999"],
        "training.seed=99999999999999999999",
    ),
    "no model": (["train", *ROWS, "--output", "new"], "the recipe has no model"),
    "wrong type": ([*TRAIN, "max_length=long"], "max_length='long'"),
    "no data": (["train", *MODEL, "--output", "new"], "no data: pass --data FILE"),
    "no data file": ([*TRAIN, "--data", "none.jsonl"], "no data file at none.jsonl"),
    "no data folder": ([*TRAIN[:3], "--task", "rte", "--data-dir", "none"], "no data folder at no"),
    "taken output": (["train", *MODEL, *ROWS, "--output", "run"], "run already holds a run"),
    "taken output of no name": (
        ["train", *MODEL, *ROWS, "--method", "lora", "seed=7"],
        "runs/rows-lora-seed7 already holds a run",
    ),
    "file as output": (["train", *MODEL, *ROWS, "--output", "rows.jsonl"], "rows.jsonl is a file"),
    "both ways": ([*TRAIN, "--resume", "--overwrite"], "exclude each other"),
    "complete": (["train", "--resume", "--output", "run"], "run is complete"),
    "nothing to resume": (["train", "--resume", "--output", "none"], "holds no run to resume"),
    "no run": (["evaluate", "none"], "none is not a run"),
    "unfinished run": (["evaluate", "half"], "half has no result.json"),
    "recipe of a run": (["evaluate", "spoilt"], "recipe.yaml line 2 is not YAML"),
    "result of a run": (["generate", "damaged", "--prompt", "a"], "result.json is not JSON"),
    "generate with a class": (
        ["generate", "labelled", "--prompt", "a"],
        "writes no text: ask it with lorada predict labelled --text TEXT",
    ),
    "serve a class": (
        ["serve", "labelled", "run"],
        "labelled is a classifier of y and writes no text",
    ),
    "predict beside": (
        ["predict", "labelled", "--text", "a", "--data", "labels.jsonl"],
        "--text 'a' and --data labels.jsonl exclude each other",
    ),
    "predict to no table": (
        ["predict", "labelled", "--text", "a", "--output", "x.txt"],
        "--output x.txt is neither a .jsonl nor a .csv file",
    ),
    "serve a scorer": (
        ["serve", "scorer"],
        "is a scorer and writes no text: ask it with lorada predict",
    ),
    "serve with an empty key": (["serve", "run", "--api-key", ""], "--api-key is empty, or has a"),
    "serve for ever": (["serve", "run", "--timeout", "inf"], "--timeout inf has no end"),
    "chat with one twice": (["chat", "run", "run"], "run is given twice"),
    "chat on two bases": (["chat", "run", "other"], "was trained on llama and other on wide"),
    "a benchmark of a class": (
        ["evaluate", "labelled", "--lm-eval", "piqa"],
        "labelled is a classifier of y and writes no text",
    ),
    "no rows to score": (["evaluate", "run"], "no data: pass --data FILE"),
    "no file to score": (["evaluate", "run", "--data", "none.csv"], "no data file at none.csv"),
    "lm-eval with rows": (["evaluate", "run", "--lm-eval", "a", "--data", "x"], "leave out x"),
    "limit": (["evaluate", "run", "--limit", "3"], "--limit 3 is for --lm-eval"),
    "no text": (["explore", "run", "--text", " ", "--maps"], "the text is empty"),
    "explore three": (
        ["explore", "run", "half", "other", "--text", "a"],
        "3 runs do not fit side by side: give one or two",
    ),
    "explore no adapter": (
        ["explore", "run", "--text", "a"],
        "has no adapter, as its method trained the model itself: explore another run",
    ),
    "describe no method": (["methods", "lorra"], "unknown method 'lorra'; did you mean lora"),
    "explain": (["explain", "--text", "a"], "lorada explore RUN --text TEXT --maps"),
    "a system's turn for prompts": (["chat", "run", "--system", "a"], "run continues each line"),
    "no picture": (["plot", "9"], "no picture '9'"),
    "no rows of 3": (["plot", "3", "run"], "no data: pass --data FILE"),
    "export to no format": (
        ["export", "run", "new", "--format", "onxx"],
        "unknown format 'onxx'; did you mean onnx?",
    ),
    "export a graph in a dtype": (
        ["export", "run", "new", "--format", "onnx", "--dtype", "float16"],
        "--dtype is not for --format onnx",
    ),
    "export an unfinished run": (["export", "half", "new"], "half has no result.json"),
    "export no run": (["export", "none", "new"], "none is not a run"),
    "export nowhere": (["export", "run"], "no folder to write to: lorada export run DIR"),
    "export twice": (["export", "run", "new", "--merge", "other"], "leave out --merge other"),
    "export in no dtype": (["export", "run", "new", "--dtype", "int8"], "int8 is not one of"),
    "export in no size": (["export", "run", "new", "--shard-size", "2"], "2 is not a size such"),
    "export no weights": (
        ["export", "run", "new", "--adapter-only", "--dtype", "float16"],
        "--dtype is not for --adapter-only, which writes no weights",
    ),
    "export no adapter": (["export", "run", "new", "--adapter-only"], "run has no adapter"),
    "export into the run": (["export", "run", "run/x"], "lies in the run itself"),
    "export to a taken folder": (["export", "run", "half"], "half is not empty"),
    "no such table": (["table", "1"], "no table1 of results in the paper: there are tables 2, 3, "),
    "no such row": (["table", "5", "--rows", "lroa"], "unknown row of table5 'lroa'; did "),
    "no row": (["table", "5", "--rows", ","], "--rows ',' has no name in it"),
    "no task": (["table", "5", "--tasks", ""], "--tasks '' has no name in it"),
    "no such task of it": (["table", "5", "--tasks", "piqa"], "unknown task of table5 'piqa'"),
    "no such scale": (["table", "5", "--scale", "huge"], "--scale huge is not one of"),
    "no such seeds": (["table", "5", "--seeds", "a"], "--seeds a must be whole numbers"),
    "no folder of a table": (["table", "5", "--data-dir", "none"], "no data folder at none"),
    "both ways of a table": (["table", "5", "--resume", "--overwrite"], "exclude each other"),
    "both ways of a sweep": (["plot", "4", "--resume", "--overwrite"], "exclude each other"),
    "compare nothing": (["compare", *COMPARED], "nothing to compare: pass --methods"),
    "compare twice": (["compare", *COMPARED, "--methods", "lora,lora"], "names lora twice"),
    "compare no seeds": (
        ["compare", *COMPARED, "--methods", "lora", "--seeds", "1,1"],
        "--seeds names 1 twice",
    ),
    "quickstart again": (["quickstart", "--output", "before"], "lora already holds a run"),
    "count no model": (["params", "--method", "lora", "--model", "llma-7b"], "unknown model 'llma"),
}


RESULT = {"labels": [], "form": "prompt", "metrics": {}, "history": []}


def run_folder(path, model="llama", **files):
    recipe = {"method": "lora", "model": model, "data": "rows.jsonl", "output": str(path)}
    path.mkdir(parents=True)
    files = {"recipe": yaml.safe_dump(recipe), "result": json.dumps(RESULT), **files}
    for name, text in files.items():
        if text is not None:
            (path / f"{name}.{'yaml' if name == 'recipe' else 'json'}").write_text(text)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit code, error and heavy packages behind each mistake, all made in one process."""
    place = tmp_path_factory.mktemp("early")
    (place / "llama").mkdir()
    (place / "llama" / "config.json").write_text("{}")
    rows_file(place / "rows.jsonl")
    rows_file(place / "labels.jsonl", [{"text": "a", "label": "y"}, {"text": "b", "label": "n"}])
    (place / "broken.yaml").write_text("method: lora\nmodel: [\n")
    for name in ("run", "runs/rows-lora-seed7", "before/lora"):
        run_folder(place / name)
    run_folder(place / "half", result=None)
    run_folder(place / "other", model="wide")
    shutil.copytree(place / "llama", place / "wide")
    run_folder(place / "labelled", result=json.dumps({**RESULT, "form": "label", "labels": ["y"]}))
    run_folder(place / "scorer", result=json.dumps({**RESULT, "form": "score"}))
    run_folder(place / "spoilt", recipe="method: lora\nmodel: [")
    run_folder(place / "damaged", result="{")
    words = json.dumps({case: words for case, (words, _) in MISTAKES.items()})
    done = subprocess.run(
        [sys.executable, "-c", MANY], input=words, cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", MISTAKES)
def test_an_obvious_mistake_is_answered_before_torch_is_loaded(case, answers):
    code, said, heavy = answers[case]
    lines = said.splitlines()
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert MISTAKES[case][1] in lines[0]
    assert heavy == []
