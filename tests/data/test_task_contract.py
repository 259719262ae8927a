"""What every task has to do, tried on its sample rows; bad rows: one line, before any model."""

import re

import pytest
from folders import byte_tokenizer, refused, rows_file, split_file
from paths import DATA
from reasoning import problem, question, recipe
from sample_rows import FOLDER, samples

from lorada.data.batches import IGNORED
from lorada.data.files.benchmark_files import read_source
from lorada.data.forms.row_forms import convert_rows
from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.row_content import answer_of
from lorada.data.rows.training_rows import training_rows
from lorada.data.tasks import TASKS
from lorada.data.tokenize import EncodeOptions, encode, windows
from lorada.inference import generate
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

NAMES = [name for name in TASKS if name != "jsonl"]  # whose rows are the user's
CASES = [(name, protocol) for name in NAMES for protocol in TASKS[name].protocols]
every_protocol = pytest.mark.parametrize(
    ("name", "protocol"), CASES, ids=[f"{name}-{protocol}" for name, protocol in CASES]
)


def converted(name, protocol, *, scored):
    """The sample rows of a task in the form of a protocol."""
    found = TASKS[name].protocols[protocol]
    convert = (scored and found.convert_test) or found.convert
    return [convert(sample["row"]) for sample in samples(name)]


def asking(name, data, *settings):
    fixed = {"model": "-", "output": "-", "task": name, "data_dir": str(data)}
    return load_recipe(None, settings, fixed)


def test_every_task_has_sample_rows():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.iterdir())


@every_protocol
def test_a_protocol_makes_of_the_sample_rows_what_stands_beside_them(name, protocol):
    found = TASKS[name].protocols[protocol]
    shown = [sample for sample in samples(name) if protocol in sample.get("learned", {})]
    assert shown
    for sample in shown:
        assert found.convert(sample["row"]) == sample["learned"][protocol]
        if found.convert_test is not None:
            assert found.convert_test(sample["row"]) == sample["scored"][protocol]


@every_protocol
@pytest.mark.parametrize("scored", [False, True], ids=["learned", "scored"])
def test_rows_have_the_form_of_their_protocol_and_something_to_learn(name, protocol, scored):
    found = TASKS[name].protocols[protocol]
    rows = converted(name, protocol, scored=scored)
    assert convert_rows(rows, name)[1] == found.form
    for kind in found.kinds:
        options = EncodeOptions(
            1024, found.loss_on, found.labels, found.joint, kind, found.target_length
        )
        if found.form == "text":
            encoded = list(windows(rows, byte_tokenizer(), options))
        else:
            encoded = list(encode(rows, found.form, byte_tokenizer(), options))
            assert len(encoded) == len(rows)
        for one in encoded:
            targets = one.features["candidates" if found.form == "choice" else "labels"]
            if isinstance(targets, list):  # else one class or number
                assert any(target != IGNORED for target in targets)


def outputs(protocol, rows, *, right):
    """What a model gives that answers every row rightly, or every one wrongly."""
    if protocol.form == "text":  # losses of windows, by their length
        losses = [0.0 if right else 1.0] * 2
        return [(length, losses) for length in protocol.lengths] or losses
    if protocol.form == "choice":
        return [(row["answer"] + (not right)) % len(row["candidates"]) for row in rows]
    if protocol.form == "label":
        chosen = [protocol.labels.index(row["label"]) + (not right) for row in rows]
        return [protocol.labels[index % len(protocol.labels)] for index in chosen]
    if protocol.form == "score":
        return [row["score"] if right else -row["score"] for row in rows]
    return [answer_of(row) if right else "" for row in rows]


@every_protocol
def test_right_answers_score_best_and_wrong_ones_worst(name, protocol):
    found, rows = TASKS[name].protocols[protocol], converted(name, protocol, scored=True)
    best, worst = (
        next(iter(found.score(outputs(found, rows, right=right), rows).values()))
        for right in (True, False)
    )
    if found.form == "text":
        assert best == pytest.approx(1.0)  # a perplexity
        assert worst > 1.5
    else:
        assert best == pytest.approx(100.0)
        assert worst <= 0.0


@every_protocol
def test_rows_are_read_from_a_local_folder(name, protocol, tmp_path):
    task = TASKS[name]
    rows = [sample["row"] for sample in samples(name)]
    for source in (*task.train.values(), *task.test.values()):
        (tmp_path / source.folder).mkdir(parents=True, exist_ok=True)
        rows_file(tmp_path / source.folder / f"{source.split}.jsonl", rows)
    asked = asking(name, tmp_path, f"protocol={protocol}")
    kind = task.protocols[protocol].kinds[0]
    learned, _ = training_rows(asked, kind)
    assert learned.rows == converted(name, protocol, scored=False)
    for suffix in task.test:
        found = scored_rows(asked, learned.form, learned.labels, kind)
        key = "_".join(filter(None, (name, suffix)))
        assert found[key].rows == converted(name, protocol, scored=True)


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data: set LORADA_DATA")
@every_protocol
def test_no_real_row_to_score_is_refused(name, protocol):
    found = TASKS[name].protocols[protocol]
    for source in TASKS[name].test.values():
        if (DATA / source.folder / f"{source.split}.jsonl.gz").is_file():
            rows = [(found.convert_test or found.convert)(row) for row in read_source(source, DATA)]
            assert convert_rows(rows, name)[1] == found.form


BOOLQ = "commonsense_llm_adapters/boolq"
MATH = "arithmetic_llm_adapters"


def sample(task, **changes):
    return samples(task)[0]["row"] | changes


BAD = [
    ("rte", sample("rte", label=-1), ": label -1 is not in 0–1: is this a test split"),
    ("stsb", sample("stsb", label=float("nan")), ": label nan is not in 0–5"),
    ("cola", sample("cola", label="1"), ": label '1' is not in 0–1"),
    ("qnli", sample("qnli", label=True), ": label True is not in 0–1"),
    ("xsum", {"document": "a"}, ": no 'summary' in document"),
    ("wmt16_en_ro", {"translation": {"en": "a"}}, ": no 'ro' in translation"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_a_bad_row_is_refused_in_one_line_that_names_it(task, row, message, tmp_path):
    folder = TASKS[task].train["own"].folder
    split_file(tmp_path / folder, "train", [sample(task), row])
    asked, kind = asking(task, tmp_path), next(iter(TASKS[task].protocols.values())).kinds[0]
    refused(f"^{folder}/train row 2{message}", lambda: training_rows(asked, kind))


PROTOCOLS = ("generate", "likelihood")
NO_OPTIONS = [(answer, protocol) for answer in ("maybe", "answer1", "") for protocol in PROTOCOLS]
# A generated text is searched for options in lower case.
NO_OPTIONS += [(answer, "generate") for answer in ("True", None, True)]


@pytest.mark.parametrize(("answer", "protocol"), NO_OPTIONS)
def test_an_answer_that_is_none_of_the_options_is_refused(answer, protocol, tmp_path):
    good = question("is ice cold", ("true", "false"), 0)
    for split in ("train", "test"):
        split_file(tmp_path / BOOLQ, split, [good, {**good, "answer": answer}])
    asked = asking("boolq", tmp_path, f"protocol={protocol}")
    message = f"row 2: answer {answer!r} is not one of true, false$"
    refused(f"^{BOOLQ}/train {message}", lambda: training_rows(asked, "decoder"))
    refused(f"^{BOOLQ}/test {message}", lambda: scored_rows(asked, "prompt", (), "decoder"))


def test_the_options_are_those_of_the_row_and_without_them_or_its_text_it_is_refused():
    boolq = TASKS["boolq"].protocols
    row = question("Which?", ("answer1", "answer2", "answer3"), 2)
    assert boolq["generate"].convert_test(row)["answer"] == "answer3"
    bare = row | {"instruction": "x?"}
    refused("no 'Answer format: a/b'", lambda: boolq["likelihood"].convert(bare))


NO_NUMBERS = ["four", "", "3/4", "$5", "nan", "inf", None, True]
NO_LETTERS = ["F", "c", "AB", "", "4.0", None, 1]


@pytest.mark.parametrize("protocol", ["generate", "quanta"])
@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        *(("gsm8k", answer, "is not a number") for answer in NO_NUMBERS),
        *(("aqua", answer, "is not one of A, B, C, D, E") for answer in NO_LETTERS),
    ],
)
def test_a_row_to_score_without_a_number_or_a_letter_is_refused(task, answer, message, protocol):
    found = TASKS[task].protocols[protocol]
    row = problem("Which?", answer, "4")
    refused(f"^{re.escape(f'answer {answer!r}')} {message}$", lambda: found.convert_test(row))
    # MATH10K holds both kinds of answers; what is learned is the output.
    assert found.convert(row)["answer"] == answer
    for right in "ABCDE" if task == "aqua" else ("4", "-1.5", "1,234.50", " 7 "):
        assert found.convert_test(problem("Which?", right, "4"))


@pytest.mark.parametrize("protocol", ["generate", "quanta"])
def test_nothing_is_generated_where_a_row_cannot_be_scored(protocol, tmp_path, monkeypatch):
    good = problem("Two and two?", "4.0", "It is 4")
    split_file(tmp_path / MATH / "math10k_rebuilt", "train", [good] * 2)
    split_file(tmp_path / MATH / "gsm8k", "test", [good] * 3)
    split_file(tmp_path / MATH / "mawps", "test", [good, good, {**good, "answer": "four"}])
    settings = [f"protocol={protocol}", "max_steps=1"]
    train(recipe(tmp_path, tmp_path, *settings, task="gsm8k,mawps"), quiet=True)
    asked = []
    for way in ("_write_padded", "_write_refilled"):
        monkeypatch.setattr(generate, way, lambda *batch: asked.append(batch))
    refused(
        f"^{MATH}/mawps/test row 3: answer 'four' is not a number$",
        lambda: evaluate_tasks(load_run(tmp_path / "run")),
    )
    assert not asked


def test_rows_of_a_users_own_are_refused_beside_a_benchmark():
    given = {"model": "-", "output": "-", "data": "r.jsonl", "task": "rte"}
    said = "^data=r.jsonl is for rows of your own, and task=rte has others: leave it out"
    refused(said, lambda: training_rows(load_recipe(None, [], given), "encoder"))
