"""``lorada explore``: the page has the numbers of ``explain``."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch
from folders import bart_folder, byte_tokenizer, mbart_folder, refused
from peft import get_peft_model
from transformers import AutoTokenizer, BartForSequenceClassification, MBartForConditionalGeneration

from lorada import LmamConfig, explain
from lorada.explore.page_data import compute_page_data, explain_text, sentence_maps
from lorada.inference.load import load_run

SETTINGS = ["max_steps=3", "learning_rate=0.1", "report_to=[]", "max_length=32"]
RUNS = {
    "map": ("llama", "lorada_la", "rows", ["lmam.init_weights=false"]),
    "lora": ("llama", "lora", "rows", []),
    "short": ("llama", "lora", "rows", ["max_length=24"]),
    "classes": ("bert", "lmam+lora", "labels", ["lmam.init_weights=false"]),
    "seq2seq": ("bart", "lmam+lora", "rows", ["lmam.init_weights=false"]),
    "numbers": ("bert", "lora", "scores", []),
    "chats": ("llama", "lora", "turns", []),
}
TEXT = "1 + 1 ="


@pytest.mark.parametrize("name", ["map", "lora", "classes", "seq2seq", "numbers"])
def test_the_page_has_the_numbers_of_explain(name, folder):
    run = load_run(folder(name))
    found = explain_text(run, TEXT)
    data = compute_page_data(run, [TEXT, "2 + 33"])
    shown = data["run"]["shown"][0]
    tokens = len(data["sentences"][0]["tokens"])
    layers = [one for one in found if one.softmax.shape[-1] == tokens]
    assert len(shown["layers"]) == len(layers) == 2
    for layer, one in zip(shown["layers"], layers, strict=True):
        assert layer["moved"] == pytest.approx(one.moved.tolist())
        assert layer["attends"]["first"] == pytest.approx(one.attends[0].tolist())
        assert (layer["effect"] is None) == (one.effect is None)
        if one.effect is not None:
            assert layer["effect"] == pytest.approx(one.effect.tolist())
            assert layer["negative"] == pytest.approx(one.negative.tolist())
    if name == "numbers":  # which are no classes
        assert shown["next"] == {}
        return
    heads = {"head"} if name == "classes" else set()
    assert set(shown["next"]) == {"with", "without", *found.parts, *heads}
    assert data["run"]["head"] == found.head == next(iter(heads), None)
    token, share = shown["next"]["with"][0]
    best = found.probabilities["with"][0].max(-1)
    assert share == pytest.approx(float(best.values))
    words = run.labels or [run.tokenizer.decode([token]) for token in range(259)]
    assert token == words[int(best.indices)]
    if name == "map":
        assert shown["change"]["map"] == pytest.approx(found.change["map"].tolist())


def test_what_cannot_be_explored_is_refused_in_one_line(folder):
    lora = load_run(folder("lora"))
    refused("the text is empty", lambda: compute_page_data(lora, [" "]))
    refused(
        "has 80 tokens and at most 64 can be shown", lambda: compute_page_data(lora, ["ab" * 40])
    )
    pairs = dataclasses.replace(lora, pairs=True)
    refused(
        "learned pairs of texts, and a sentence is half", lambda: compute_page_data(pairs, [TEXT])
    )


def test_a_sentence_is_read_whole_and_without_an_end(folder):
    run, text = load_run(folder("short")), "ab" * 14
    tokenizer = byte_tokenizer(ends=True)
    assert tokenizer(text)["input_ids"][-1] == tokenizer.eos_token_id
    for one in (run, dataclasses.replace(run, tokenizer=tokenizer)):
        (sentence,) = compute_page_data(one, [text])["sentences"]
        assert "".join(sentence["tokens"][-28:]) == text


def test_a_run_of_chats_reads_a_sentence_through_its_template(folder):
    run, text = load_run(folder("chats")), "hi you"
    data = compute_page_data(run, [text])
    (sentence,) = data["sentences"]
    assert "".join(sentence["tokens"]) == f"<|user|>{text}<e><|assistant|>"
    assert sentence["text"] == text  # as the menu shows it
    shares = data["run"]["shown"][0]["next"]["with"]
    ids = torch.tensor([run.tokenizer(f"<|user|>{text}<e><|assistant|>")["input_ids"]])
    likely = run.model(input_ids=ids).logits[0, -1].softmax(-1).max()
    assert shares[0][1] == pytest.approx(float(likely), rel=1e-4)


def test_the_command_writes_a_page(folder, mistake, works, tmp_path):
    page = tmp_path / "page.html"
    words = ("explore", folder("map"), "--text", TEXT, "--output", page)
    out, _ = works(*words)
    assert "page.html (" in out
    assert "next: lorada chat" in out
    text = page.read_text()
    assert "lorada_la" in text
    assert not re.findall(r"(?:src|href)=[\"']?https?:", text)
    assert "so name it .html" in mistake(*words[:-1], tmp_path / "page.pdf")
    there = "is there already: choose another --output, or pass --overwrite"
    assert there in mistake(*words)
    works(*words, "--overwrite")


def test_python_makes_the_same_page(folder, tmp_path):
    run = load_run(folder("lora"))
    batch = run.tokenizer(TEXT, return_tensors="pt")
    found = explain(run.model, {"input_ids": batch["input_ids"]}, run.tokenizer)
    found.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert json.dumps("=") in text
    two = explain(run.model, {"input_ids": torch.cat([batch["input_ids"]] * 2)})
    refused("a page shows one sample, not 2", lambda: two.to_html(tmp_path / "two.html"))


def test_the_page_that_python_makes_of_a_classifier_names_its_classes(folder, tmp_path):
    run = load_run(folder("classes"))
    explanation = explain(run.model, dict(run.tokenizer(TEXT, return_tensors="pt")), run.tokenizer)
    explanation.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert explanation.classes == tuple(run.labels)
    assert all(json.dumps(label) in text for label in run.labels)


@pytest.mark.parametrize("form", ["prompt", "label"])
def test_what_a_decoder_reads_beside_the_text_is_the_models_own(form, tmp_path):
    if form == "prompt":  # mBART starts from the language that it writes
        place = mbart_folder(tmp_path / "mbart")
        model = MBartForConditionalGeneration.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place, src_lang="en_XX", tgt_lang="ro_RO")
    else:  # a head reads the end of the whole text, which BART's decoder reads too
        place = bart_folder(tmp_path / "bart", ends=True)
        model = BartForSequenceClassification.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
    config = LmamConfig(length=8, target_modules=["self_attn"])
    run = SimpleNamespace(
        model=get_peft_model(model, config), tokenizer=tokenizer, kind="encoder_decoder",
        form=form, pairs=False, device=model.device, recipe=SimpleNamespace(max_length=32),
        folder=place,
    )  # fmt: skip
    assert len(explain_text(run, "abc")) > 0
    assert sentence_maps(run, "abc")["tokens"]
