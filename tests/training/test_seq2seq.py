"""Encoder–decoders in runs: every method, losses, languages, scores while training, resuming."""

import json
import logging
import re

import pytest
import torch
from conftest import SAME
from folders import (
    TURNS,
    adapter_weights,
    bart_folder,
    llama_folder,
    mbart_folder,
    refused,
    rows_file,
    writing_folder,
)
from method_cases import small
from trained_runs import PressCtrlC, assert_same, run_recipe
from transformers import AutoTokenizer, GenerationMixin, MBart50Tokenizer

from lorada.inference.evaluate import evaluate, evaluate_tasks
from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.training.inputs import prepare_training
from lorada.training.models.loading import language_settings, set_languages
from lorada.training.train import train

TRAINING = ["max_steps=4", "report_to=[]", "logging_steps=1", "max_length=64", "max_new_tokens=12"]
PROBE = [{"prompt": "1 + 2 =", "response": " 3"}, {"prompt": "a longer one", "response": " yes"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    bart_folder(root / "bart", encoder_layers=3)  # OwLore trains five layers at a time
    bart_folder(root / "still", dropout=0.0)
    mbart_folder(root / "mbart")
    llama_folder(root / "llama", attention_dropout=0.0)
    writing_folder(root / "data")
    rows_file(root / "rows.jsonl")
    return root


def recipe(place, run, model, method, *pairs, **options):
    settings = [f"{part}.{key}={json.dumps(value)}" for part, values in small(method).items()
                for key, value in values.items()]  # fmt: skip
    given = {"model": model, "rows": "rows", "method": method, **options}
    return run_recipe([*TRAINING, *settings], place, run, *pairs, **given)


@pytest.fixture(scope="module")
def finished(place):
    return load_run(train(recipe(place, place / "finished", "bart", "lora"), quiet=True).run)


def task_recipe(place, run, model, method, *pairs):
    task = "xsum" if model == "bart" else "wmt16_en_ro"
    own = [] if model == "bart" else ["train_on=ro_sts"]
    own += ["max_new_tokens=10", "max_target_length=32", "eval_rows=3"]
    where = {"task": task, "data_dir": str(place / "data"), "data": None}
    return recipe(place, run, model, method, *own, *pairs, **where)


SLOW = [("bart", name) for name in ("bitfit", "full", "mam", "owlore", "shira")]
CASES = [
    *(("bart", "lorada_a"), ("mbart", "lorada_a")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (*SLOW, ("mbart", "prefix"))),
]


@pytest.mark.more
@pytest.mark.parametrize(("model", "method"), CASES)
def test_a_method_trains_saves_and_scores_on_its_task(place, tmp_path, model, method):
    result = train(task_recipe(place, tmp_path / "run", model, method), quiet=True).result
    assert result.steps == 4
    assert result.parameters.trainable > 0
    run = load_run(tmp_path / "run")
    assert run.kind == "encoder_decoder"
    (scores,) = evaluate_tasks(run).values()
    assert scores["n"] == 3
    assert 0 < scores["loss"] < 10
    assert len(generate(run, ["ann saw 2 cats.", "bo"])) == 2


@pytest.mark.more
def test_a_run_learns_its_answers(place, tmp_path):
    rows = [{"prompt": "ab"[n % 2] * 4, "response": ("yes", "no")[n % 2]} for n in range(8)]
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    pairs = ["max_steps=60", "learning_rate=5e-3"]
    train(recipe(place, tmp_path / "run", "bart", "full", *pairs, data=data), quiet=True)
    run = load_run(tmp_path / "run")
    assert evaluate(run, data)["exact_match"] == 100
    assert generate(run, ["aaaa", "bbbb"]) == ["yes", "no"]


@pytest.mark.fp64
def test_the_loss_of_a_run_is_the_models_own_on_the_same_tokens(place, tmp_path):
    made = recipe(place, tmp_path / "run", "still", "lorada_a", "dtype=float64")
    run = load_run(train(made, quiet=True).run)
    rows = str(rows_file(tmp_path / "probe.jsonl", PROBE))
    total = count = 0
    for row in PROBE:
        read = torch.tensor([run.tokenizer(row["prompt"])["input_ids"]])
        labels = torch.tensor([[*run.tokenizer(row["response"])["input_ids"], 2]])
        total += run.model(input_ids=read, labels=labels).loss.item() * labels.shape[1]
        count += labels.shape[1]
    assert evaluate(run, rows)["loss"] == pytest.approx(total / count, rel=SAME)


@pytest.mark.more
def test_an_mbart_reads_english_and_starts_in_romanian(place, tmp_path):
    run = load_run(train(task_recipe(place, tmp_path / "run", "mbart", "lmam"), quiet=True).run)
    tokenizer = run.tokenizer
    english, romanian = (tokenizer.convert_tokens_to_ids(code) for code in ("en_XX", "ro_RO"))
    assert tokenizer("ab")["input_ids"][-1] == english
    labels = tokenizer(text_target="ab")["input_ids"]
    assert labels[-2:] == [2, romanian]
    # mBART's decoder is given the labels with their last token, the language, put in front.
    seen = run.model.prepare_decoder_input_ids_from_labels(torch.tensor([labels]))
    assert seen[0, 0] == romanian
    assert language_settings(tokenizer) == {"decoder_start_token_id": romanian}
    starts = []
    generate_ = run.model.generate
    run.model.generate = lambda **given: starts.append(generate_(**given)) or starts[-1]
    generate(run, ["ab"])
    assert starts[0][0, 0] == romanian


def test_where_the_language_stands_first_it_is_the_first_token_to_write():
    letters = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)]
    tokenizer = MBart50Tokenizer(vocab=letters, src_lang="en_XX", tgt_lang="ro_RO")
    code = tokenizer.convert_tokens_to_ids("ro_RO")
    assert language_settings(tokenizer) == {"forced_bos_token_id": code}


@pytest.mark.more
def test_languages_of_your_own_rows_are_the_recipes(place, tmp_path):
    pairs = ["languages=[de_DE,fr_XX]", "max_steps=1"]
    run = load_run(train(recipe(place, tmp_path / "a", "mbart", "lmam", *pairs), quiet=True).run)
    assert (run.tokenizer.src_lang, run.tokenizer.tgt_lang) == ("de_DE", "fr_XX")
    plain = load_run(train(recipe(place, tmp_path / "b", "mbart", "lmam"), quiet=True).run)
    english = plain.tokenizer.convert_tokens_to_ids("en_XX")
    assert language_settings(plain.tokenizer) == {"decoder_start_token_id": english}


def test_a_language_that_the_model_lacks_is_named(place, tmp_path):
    wrong = recipe(place, tmp_path / "run", "mbart", "lmam", "languages=[en_XX,klingon]")
    refused(r"tokenizer has no 'klingon'; pass languages=", lambda: train(wrong, quiet=True))
    wrong = recipe(place, tmp_path / "run", "bart", "lmam", "languages=[en_XX,ro_RO]")
    refused("this model's tokenizer has none; leave them out", lambda: train(wrong, quiet=True))
    with pytest.raises(ValueError, match="languages"):
        recipe(place, tmp_path / "run", "mbart", "lmam", "languages=[en_XX]")
    tokenizer = AutoTokenizer.from_pretrained(place / "bart")
    set_languages(tokenizer, None, ("en_XX", "ro_RO"))  # a protocol's do not bind a plain BART


WRITES = ["predict_with_generate=true", "dev_rows=3"]
BEST = [*WRITES, "eval_strategy=steps", "eval_steps=1", "save_steps=1",
        "load_best_model_at_end=true"]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "best", "beams", "own"),
    [("bart", "rouge2", 6, []), ("mbart", "eval_bleu_ro", 2, ["generation_num_beams=2"])],
)
def test_the_best_model_may_be_chosen_by_what_it_writes(
    place, tmp_path, model, best, beams, own, caplog, monkeypatch
):
    asked, generate = [], GenerationMixin.generate
    monkeypatch.setattr(
        GenerationMixin,
        "generate",
        lambda *given, **how: asked.append(how) or generate(*given, **how),
    )
    pairs = [*BEST, f"metric_for_best_model={best}", "label_smoothing_factor=0.1", *own]
    with caplog.at_level(logging.WARNING):
        result = train(task_recipe(place, tmp_path / "run", model, "lorada_a", *pairs), quiet=True)
    name = f"eval_{best.removeprefix('eval_')}"
    measured = [entry for entry in result.result.history if name in entry]
    assert [entry["step"] for entry in measured] == [1, 2, 3, 4]
    assert all("eval_loss" in entry for entry in measured)
    state = json.loads(sorted((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))[-1]
                       .read_text())  # fmt: skip
    assert state["best_metric"] == max(entry[name] for entry in measured)
    assert "max_length" not in " ".join(caplog.messages)
    how = {(each["num_beams"], each["max_new_tokens"], each["do_sample"]) for each in asked}
    assert how == {(beams, 10, False)}


REFUSED = {
    "by a decoder": (
        "llama", "metric_for_best_model=exact_match",
        "'exact_match' is not measured while training: leave it out",
    ),
    "more than there are positions": (
        "bart", "max_new_tokens=65",
        "max_new_tokens=65 is more than this model can write: pass max_new_tokens=64 or less",
    ),
    "another metric": (
        "bart", "metric_for_best_model=rouge2",
        "'rouge2' is not measured while training (exact_match are)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_before_training(place, tmp_path, case):
    model, pair, message = REFUSED[case]
    asked = recipe(place, tmp_path / "run", model, "lmam", *WRITES, pair)
    refused(re.escape(message), lambda: train(asked, quiet=True))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


NOT_FOR_BART = {
    "messages": TURNS,
    "text": [{"text": "a text"}, {"text": "another"}],
    "choice": [{"prompt": "p", "candidates": ["a", "b"], "answer": n % 2} for n in range(4)],
}


@pytest.mark.parametrize("form", NOT_FOR_BART)
def test_rows_whose_answers_its_encoder_would_read_are_refused(place, finished, tmp_path, form):
    data = str(rows_file(tmp_path / "rows.jsonl", NOT_FOR_BART[form]))
    said = f"^{data} has {form} rows, which are not for an encoder–decoder: take rows with prompt"
    asked = recipe(place, tmp_path / "run", "bart", "lora", data=data)
    refused(said, lambda: prepare_training(asked))
    held_out = recipe(place, tmp_path / "run", "bart", "lora", eval_data=data)
    refused(said, lambda: prepare_training(held_out))
    refused(said, lambda: evaluate(finished, data))


def test_more_tokens_than_a_decoder_has_positions_are_refused(finished):
    assert generate(finished, ["1 + 1 ="], max_new_tokens=64)
    with pytest.raises(ValueError, match="max_new_tokens=65 is more than this model can write"):
        generate(finished, ["1 + 1 ="], max_new_tokens=65)


@pytest.mark.more
def test_a_run_that_was_cut_off_resumes_bit_for_bit(place, tmp_path):
    pairs = ["max_steps=6", "save_steps=2", "dev_rows=4", "eval_strategy=steps", "eval_steps=2",
             "predict_with_generate=true", "label_smoothing_factor=0.1"]  # fmt: skip
    whole = train(recipe(place, tmp_path / "whole", "bart", "lorada_a", *pairs), quiet=True)
    part = recipe(place, tmp_path / "part", "bart", "lorada_a", *pairs)
    assert train(part, quiet=True, callbacks=[PressCtrlC(4)]).interrupted
    resumed = train(part, resume=True, quiet=True)
    assert resumed.result.resumed_from == "checkpoint-5"
    assert_same(adapter_weights(resumed.run), adapter_weights(whole.run))
    assert whole.result.history == resumed.result.history
