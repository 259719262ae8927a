"""XSum and WMT16 as tasks: what is asked, what is learned from, and what is scored."""

import pytest
from folders import bart_folder, bert_folder, llama_folder, refused, writing_folder
from trained_runs import run_recipe

from lorada.data.tasks import TASKS
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.training.train import train

NEWS = {"document": "Rain fell.\nIt was wet.", "summary": "It rained.", "id": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    llama_folder(root / "llama", max_position_embeddings=128)
    bert_folder(root / "bert")
    bart_folder(root / "bart")
    writing_folder(root / "data")
    return root


def recipe(place, run, model, task, *pairs):
    settings = ["max_steps=2", "report_to=[]", "lmam.rank=2", "lmam.length=8", *pairs]
    rows = {"task": task, "data_dir": str(place / "data"), "data": None}
    return run_recipe(settings, place, run, model=model, method="lmam", **rows)


def test_a_decoders_answer_is_its_first_line_that_is_not_empty():
    score = TASKS["xsum"].protocols["prompt"].score
    row = TASKS["xsum"].protocols["prompt"].convert(NEWS)
    assert score(["\n It rained.\nSummary: again and again"], [row])["rouge1"] == 100
    assert score([" \n "], [row])["rouge1"] == 0
    protocol = TASKS["wmt16_en_ro"].protocols["prompt"]
    pair = protocol.convert({"translation": {"en": "a", "ro": "Ieri a plouat mult."}})
    scores = protocol.score([" Ieri a plouat mult.\nEnglish: next"], [pair])
    assert scores["bleu"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("model", "protocol"), [("llama", "prompt"), ("bart", "seq2seq")], ids=["decoder", "bart"]
)
@pytest.mark.parametrize("task", ["xsum", "wmt16_en_ro"])
def test_a_task_trains_and_scores_on_rows_of_a_local_folder(place, tmp_path, task, model, protocol):
    pairs = ["max_new_tokens=12", "max_target_length=24", "eval_rows=4"]
    pairs += ["train_on=tatoeba"] if task == "wmt16_en_ro" else []
    trained = train(recipe(place, tmp_path / "run", model, task, *pairs), quiet=True)
    assert trained.result.data.rows == 6
    found = evaluate_tasks(load_run(trained.run))[task]
    names = {"xsum": ["rouge1", "rouge2", "rougeL"], "wmt16_en_ro": ["bleu_ro", "bleu"]}[task]
    assert list(found)[: 1 + len(names)] == ["n", *names]
    assert found["n"] == 4
    assert found["loss"] > 0
    assert load_run(trained.run).protocol is TASKS[task].protocols[protocol]


WRONG = {
    "a decoder's protocol of an encoder": (
        "bert", "xsum", ["protocol=prompt"], "by protocol 'prompt' needs a model",
    ),
    "writing of an encoder": (
        "bert", "xsum", [], "needs a model of kind encoder_decoder, and this one",
    ),
    "BART's protocol of a decoder": (
        "llama", "xsum", ["protocol=seq2seq"], "needs a model of kind encoder_decoder",
    ),
    "no such protocol": (
        "llama", "xsum", ["protocol=chat"], "protocol='chat' is not one of seq2seq, prompt",
    ),
    "the hub's own rows, which are not here": ("bart", "wmt16_en_ro", [], "no data at .*ro-en/tr"),
    "no such rows": (
        "bart", "wmt16_en_ro", ["train_on=europarl"],
        "train_on='europarl': wmt16_en_ro can learn from own, ro_sts, tato",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_learned_is_refused(place, tmp_path, case):
    model, task, pairs, message = WRONG[case]
    wrong = recipe(place, tmp_path / "run", model, task, *pairs)
    refused(message, lambda: train(wrong, quiet=True), Exception)
    assert not (tmp_path / "run").exists()
