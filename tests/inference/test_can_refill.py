"""Which runs answer from a refilled batch, and that a run's answers are the same either way."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from folders import byte_tokenizer
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from lorada.data.tokenize import EncodeOptions, encode
from lorada.inference import generate as generating
from lorada.inference.generate import generate, generation_settings, reason_against, tokens_of
from lorada.inference.load import load_run

PLAIN = {"max_new_tokens": 12}
LLAMA = {"initializer_range": 0.3}  # so that answers differ from prompt to prompt
SETTINGS = ["max_steps=2", "training.report_to=[]", "save_strategy=no"]
RUNS = {
    "run": ("llama", "lmam", "rows", ["lmam.length=6", "lmam.map_learning_rate=0.5",
                                      "eval_batch_size=2"]),
}  # fmt: skip
PROMPTS = ["a" * n + " + b =" for n in (3, 9, 1, 14, 6)]


def can_refill(run, settings):
    return reason_against(run, settings) is None


@pytest.fixture(scope="module")
def run(folder):
    """A run whose map changes what it answers."""
    return load_run(folder("run"))


ELSEWHERE = [
    {"num_beams": 4}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 2}, {"forced_bos_token_id": 5}, {"suppress_tokens": [5]},
    {"bad_words_ids": [[5]]}, {"prompt_lookup_num_tokens": 3},
]  # fmt: skip
SAVED = [
    ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, True),
    ({"eos_token_id": [2, 7], "max_length": 4096}, True),
    ({"repetition_penalty": 1.1}, False),
    ({"use_cache": False}, False),
    ({"cache_implementation": "static"}, False),
]


def test_settings_that_are_not_followed_are_left_to_generate(run):
    assert can_refill(run, PLAIN)
    assert [one for one in ELSEWHERE if can_refill(run, PLAIN | one)] == []


@pytest.mark.parametrize(("saved", "expected"), SAVED, ids=str)
def test_settings_that_are_saved_with_the_model_count_too(run, saved, expected, monkeypatch):
    config = type(run.model.generation_config).from_dict(saved)
    monkeypatch.setattr(run.model.get_base_model(), "generation_config", config)
    assert can_refill(run, PLAIN) is expected


def test_models_and_adapters_with_steps_of_their_own_are_left_to_generate(run):
    def on(config):
        base = LlamaForCausalLM(run.config)
        return replace(run, model=get_peft_model(base, config))

    targets = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    assert can_refill(on(LoraConfig(**targets)), PLAIN)
    assert not can_refill(on(LoraConfig(**targets, alora_invocation_tokens=[5])), PLAIN)
    assert not can_refill(
        on(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), PLAIN
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 259}
    phi = Phi3ForCausalLM(Phi3Config(**sizes, num_attention_heads=4, pad_token_id=0))
    assert can_refill(replace(run, model=LlamaForCausalLM(run.config)), PLAIN)
    assert not can_refill(replace(run, model=phi), PLAIN)


@pytest.mark.parametrize("ended_by", ["tokens", "texts of the task", "a text of the base"])
def test_a_run_answers_the_same_either_way(run, ended_by, monkeypatch):
    plain = generate(run, PROMPTS, 12)
    # A letter from the middle of an answer.
    stop = next(c for answer in plain for c in answer[1:-1] if c.isascii() and c.isprintable())
    settings = {"stop_strings": [stop]} if ended_by == "texts of the task" else {}
    if ended_by == "a text of the base":
        monkeypatch.setattr(run.model.generation_config, "stop_strings", stop)

    def ask(*, refill):
        why = None if refill else "for a test"
        monkeypatch.setattr(generating, "reason_against", lambda *_: why)
        asked = generation_settings(run, 12) | settings
        found = generating.generate_parts(run, PROMPTS, [range(5)], asked, templated=False)
        return [text.text for _, text in sorted(found)]

    found = ask(refill=True)
    assert found == ask(refill=False)
    assert len(set(found)) > 1
    assert (found == plain) == (ended_by == "tokens")
    assert found == plain or any(answer.endswith(stop) for answer in found)
    with run.model.disable_adapter():
        assert ask(refill=True) != found


@pytest.mark.parametrize("room", [None, 6])
def test_a_prompt_has_no_end_where_the_tokenizer_ends_every_text(run, room):
    """In training a response follows each prompt, so a prompt has no end there either."""
    ending = replace(run, tokenizer=byte_tokenizer(ends=True))
    prompts = ["1 + 2 =", "4"]
    plain = tokens_of(replace(run, tokenizer=byte_tokenizer()), prompts, room, templated=False)
    assert tokens_of(ending, prompts, room, templated=False) == plain
    assert room is None or len(plain[0]) == room
    if room is None:
        rows = [{"prompt": prompt, "response": "3"} for prompt in prompts]
        encoded = encode(rows, "prompt", ending.tokenizer, EncodeOptions(64))
        learned = [row.features["input_ids"] for row in encoded]
        assert [ids[: len(p)] for ids, p in zip(learned, plain, strict=True)] == plain


def test_prompts_that_lose_their_middle_are_cut_as_generate_gets_them(run, monkeypatch, caplog):
    prompts, answers = ["x" * 80 + "1", "2"], []
    for why in (None, "for a test"):
        monkeypatch.setattr(generating, "reason_against", lambda *_, why=why: why)
        answers.append(generate(run, prompts, 20))
    assert answers[0] == answers[1]
    assert caplog.text.count("1 of 2 prompts lost their middle") == 2


def test_memory_that_runs_out_is_not_taken_for_damaged_settings(run, monkeypatch):
    fails = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(run.model.get_base_model(), "forward", fails)
    monkeypatch.setattr(generating, "reason_against", lambda *_: None)
    with pytest.raises(torch.OutOfMemoryError):
        generate(run, PROMPTS)
