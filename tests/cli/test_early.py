"""What needs no torch does not load it: lists, help, and answers to an obvious mistake."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from folders import rows_file

MANY = """
import contextlib, io, json, pathlib, sys, lorada.cli
def files():
    return {str(path): path.is_file() and path.read_bytes() for path in pathlib.Path().rglob("*")}
found, before = {}, files()
for case, words in json.load(sys.stdin).items():
    sys.argv, said, code = ["lorada", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            lorada.cli.main()
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "peft") if name in sys.modules]
    found[case] = [code, said.getvalue(), heavy, files() == before]
print(json.dumps(found))
"""

MODEL, ROWS = "--model llama", "--data rows.jsonl"
TRAIN = f"train {MODEL} {ROWS} --output new"
COMPARED = f"{MODEL} {ROWS} --held-out rows.jsonl --output new"
# What is typed → what is said of it.
MISTAKES = {
    "generate run": "Missing",
    "no-such-command": "No such command",
    "train none.yaml": "no recipe at none.yaml",
    "train broken.yaml": "broken.yaml line 3 is not YAML",
    f"{TRAIN} rank=4 fast": "'fast' is not key=value",
    f"{TRAIN} --method lroa": "unknown method 'lroa'; did you mean lora",
    f"{TRAIN} --task jsnl": "unknown task 'jsnl'; did you mean jsonl",
    f"train --model smollm {ROWS} --output new": "did you mean smo",
    f"{TRAIN} --method ia3 --model ./none": (
        "no model folder at ./none: give a folder that holds a model, its id on the hub, or "
    ),
    f"{TRAIN} seed=99999999999999999999": "training.seed=99999999999999999999",
    f"train {ROWS} --output new": "the recipe has no model",
    f"{TRAIN} max_length=long": "max_length='long'",
    f"{TRAIN} lerning_rate=1": "unknown override 'lerning_rate'; did you mean learning_rate",
    f"{TRAIN} --method lorada_la lenght=3": "unknown override 'lenght'; did you mean length",
    f"{TRAIN} lora.rank=3": "unknown setting of lora 'rank'; did you mean lora.r?",
    f"{TRAIN} --method lorada_la rank=3": "write lmam.rank, bottleneck.rank",
    f"{TRAIN} --method lmam lmam=3": "lmam=3 is a section: write lmam.NAME=…",
    f"train {MODEL} --output new": "no data: pass --data FILE",
    f"{TRAIN} --data none.jsonl": "no data file at none.jsonl",
    f"train {MODEL} --task rte --data-dir none --output new": "no data folder at no",
    f"train {MODEL} {ROWS} --output run": "run already holds a run",
    f"train {MODEL} {ROWS} --output rows.jsonl": "rows.jsonl is a file",
    f"{TRAIN} --resume --overwrite": "exclude each other",
    "train --resume --output run": "run is complete",
    "train --resume --output none": "holds no run to resume",
    "evaluate none": "none is not a run",
    "evaluate half": "half has no result.json",
    "generate damaged --prompt a": "result.json is not JSON",
    "generate labelled --prompt a": (
        "writes no text: ask it with lorada predict labelled --text TEXT"
    ),
    "serve labelled": "writes no text: ask it with lorada predict labelled --text TEXT",
    "predict labelled --text a --data labels.jsonl": "pass either --text TEXT or --data FILE",
    "predict labelled": "pass either --text TEXT or --data FILE",
    "predict labelled --text a --output x.txt": (
        "--output x.txt is neither a .jsonl nor a .csv file"
    ),
    "chat scorer": "is a scorer and writes no text: ask it with lorada predict",
    "evaluate run": "no data: pass --data FILE",
    f"{TRAIN} eval_data=gone.jsonl": "gone.jsonl, which is eval_data: pass eval_data=FILE (.jsonl,",
    "evaluate moved": "gone.jsonl, which is eval_data of the run: put it back, or pass --data FILE",
    "evaluate shared": (
        "gone.jsonl, which is data of the run, of which it holds out a share: put it back, or pass "
        "other rows with --data FILE (.jsonl"
    ),
    "evaluate moved --data none.jsonl": "no data file at none.jsonl: pass --data FILE",
    "train --resume --output gone": "gone.jsonl, which is data of what is resumed: put it back",
    f"compare {COMPARED} --methods lora --held-out gone.jsonl": (
        "gone.jsonl, which is --held-out: pass --held-out FILE (.jsonl"
    ),
    "chat run --system a": "run continues each line",
    "report run": "run holds no comparison: it has no plan.json",
    "plot 3 run": "no data: pass --data FILE",
    "export run new --format onxx": "'onxx' is not one of 'transformers', 'onnx'",
    "export run run/x": "lies in the run itself",
    "export run half": "half is not empty",
    "table 1": "no table1 of results in the paper: there are tables 2, 3, ",
    "table 5 --rows lroa": "unknown row of table5 'lroa'; did you mean lora or lorada_a?",
    "table 5 --rows ,": "'--rows': ',' has no name in it",
    "table 5 --workers 0": "'--workers': Input should be greater than or equal to 1",
    "table 5 --gpus-per-job 0": "'--gpus-per-job': 0 must be a whole number, or one over one",
    "table 5 --gpus-per-job 1.5": "'--gpus-per-job': 1.5 must be a whole number",
    "table 5 --gpus-per-job inf": "'--gpus-per-job': inf must be a whole number",
    "table 5 --gpus-per-job x": "'--gpus-per-job': x must be a whole number",
    "table 5 --seeds -1": "'--seeds': -1 must be a whole number from 0",
    "table 5 --seeds 1,x": "'--seeds': 1,x must be whole numbers",
    "train --modle x": "No such option: --modle (Possible options: --method, --model)",
    "table 5 --tasks piqa": "unknown task of table5 'piqa'",
    "table 5 --data-dir none": "no data folder at none",
    "table 5 --resume --overwrite": "exclude each other",
    f"compare {COMPARED}": "nothing to compare: pass --methods",
    f"compare {COMPARED} --methods lora,lora": "names lora twice",
    f"compare {COMPARED} --methods lora,lmam lora.r=4": "unknown override 'lora.r'",
    f"compare {COMPARED} --methods lora:rank=1": "lora:rank=1: unknown override 'rank'",
}


LISTS = ["--help", "train --help", "--version", "methods", "methods lorada_la", "tasks --json"]
RESULT = {"labels": [], "form": "prompt", "metrics": {}, "history": []}


def run_folder(path, model="llama", settings=None, **files):
    recipe = {"method": "lora", "model": model, "data": "rows.jsonl", "output": str(path)}
    recipe |= settings or {}
    path.mkdir(parents=True)
    files = {"recipe": yaml.safe_dump(recipe), "result": json.dumps(RESULT), **files}
    for name, text in files.items():
        if text is not None:
            (path / f"{name}.{'yaml' if name == 'recipe' else 'json'}").write_text(text)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command ends in, all in one process: code, error, heavy packages, files."""
    place = tmp_path_factory.mktemp("early")
    (place / "llama").mkdir()
    (place / "llama" / "config.json").write_text("{}")
    rows_file(place / "rows.jsonl")
    rows_file(place / "labels.jsonl", [{"text": "a", "label": "y"}, {"text": "b", "label": "n"}])
    (place / "broken.yaml").write_text("method: lora\nmodel: [\n")
    for name in ("run", "before/lora"):
        run_folder(place / name)
    run_folder(place / "half", result=None)
    run_folder(place / "moved", settings={"eval_data": "gone.jsonl"})
    run_folder(place / "shared", settings={"data": "gone.jsonl", "eval_data": "20%"})
    run_folder(place / "gone", settings={"data": "gone.jsonl"}, result=None)
    run_folder(place / "other", model="wide")
    shutil.copytree(place / "llama", place / "wide")
    run_folder(place / "labelled", result=json.dumps({**RESULT, "form": "label", "labels": ["y"]}))
    run_folder(place / "scorer", result=json.dumps({**RESULT, "form": "score"}))
    run_folder(place / "damaged", result="{")
    words = json.dumps({case: shlex.split(case) for case in [*LISTS, *MISTAKES]})
    done = subprocess.run(
        [sys.executable, "-c", MANY], input=words, cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.first  # one process has made all answers
@pytest.mark.parametrize("case", MISTAKES)
def test_an_obvious_mistake_is_answered_before_torch_is_loaded(case, answers):
    code, said, heavy, nothing_written = answers[case]
    lines = said.splitlines()
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert MISTAKES[case] in lines[0]
    assert heavy == []
    assert nothing_written


@pytest.mark.parametrize("case", LISTS)
def test_lists_and_help_need_no_torch(case, answers):
    assert answers[case] == [0, "", [], True]
