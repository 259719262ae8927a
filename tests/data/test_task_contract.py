"""What every task has to do, tried on its sample rows."""

import pytest
from folders import byte_tokenizer, rows_file
from paths import DATA
from sample_rows import FOLDER, samples

from lorada.data.row_forms import in_form
from lorada.data.rows import answer_of, read_source
from lorada.data.task_rows import scored_rows, training_rows
from lorada.data.tasks import TASKS
from lorada.data.tokenize import IGNORED, EncodeOptions, encode, windows
from lorada.training.load_recipe import load_recipe

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
    assert in_form(rows, name)[1] == found.form
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
    fixed = {"model": "-", "output": "-", "task": name, "data_dir": str(tmp_path)}
    recipe = load_recipe(None, [f"protocol={protocol}"], fixed)
    kind = task.protocols[protocol].kinds[0]
    learned, _ = training_rows(recipe, kind)
    assert learned.rows == converted(name, protocol, scored=False)
    for suffix in task.test:
        found = scored_rows(recipe, learned.form, learned.labels, kind)
        key = "_".join(filter(None, (name, suffix)))
        assert found[key].rows == converted(name, protocol, scored=True)


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data: set LORADA_DATA")
@every_protocol
def test_no_real_row_to_score_is_refused(name, protocol):
    found = TASKS[name].protocols[protocol]
    for source in TASKS[name].test.values():
        if (DATA / source.folder / f"{source.split}.jsonl.gz").is_file():
            rows = [(found.convert_test or found.convert)(row) for row in read_source(source, DATA)]
            assert in_form(rows, name)[1] == found.form
