"""The Modelfile of an export: Ollama asks with the template that the run was trained with."""

import re

import pytest
from folders import TURNS, byte_tokenizer, llama_folder, rows_file
from trained_runs import QUICK, train_once

from lorada.inference.export import export
from lorada.inference.modelfile import chat_format

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
# The last answer is not written as the others are.
BY_PLACE = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.index > 2 %}!{% endif %}")


def tokenizer_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def as_ollama(template, turns):
    """What Go makes of the templates that we write: ``if .System``, and ``range .Messages``."""
    system = "".join(text for role, text in turns if role == "system")
    head, _, rest = template.partition("{{ range .Messages }}")
    body, _, answer = rest.rpartition("{{ end }}{{ end }}")
    condition = re.fullmatch(
        r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", head, re.S
    )
    if condition:
        head = condition[1] if system else condition[2]
    text = head.replace("{{ .System }}", system)
    user, _, assistant = body.partition('{{ else if eq .Role "assistant" }}')
    pieces = {"user": user.removeprefix('{{ if eq .Role "user" }}'), "assistant": assistant}
    for role, content in turns:
        text += pieces.get(role, "").replace("{{ .Content }}", content)
    return text + answer


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
def test_ollama_writes_a_conversation_as_the_chat_template_does(template):
    tokenizer = tokenizer_with(template)
    found = chat_format(tokenizer).as_template()
    turns = [("user", "hi"), ("assistant", "ho"), ("user", "1 < 2")]
    for given in (
        turns,
        turns[:1],
        *([[("system", "Be brief."), *turns]] if template == CHATML else []),
    ):
        messages = [{"role": role, "content": text} for role, text in given]
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert as_ollama(found, given) == expected


@pytest.mark.parametrize("template", [BY_PLACE, '{{ """ """ }}', None])
def test_a_template_that_is_more_than_texts_around_turns_is_not_guessed(template):
    assert chat_format(tokenizer_with(template)) is None


RUNS = {
    "prompts": ("llama", "lora", "rows", []),
    "talk": ("llama", "lora", "turns", []),
    "map": ("llama", "lorada_la", "rows", []),
}


def test_an_export_has_a_modelfile_where_all_is_merged(tmp_path):
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "rows.jsonl")
    rows_file(tmp_path / "turns.jsonl", TURNS)
    for name in RUNS:
        export(train_once(tmp_path, name, RUNS, [*QUICK, "max_steps=1"]), tmp_path / f"{name} out")
    assert not (tmp_path / "map out" / "Modelfile").exists()
    prompts, talk = (
        (tmp_path / f"{name} out" / "Modelfile").read_text() for name in ("prompts", "talk")
    )
    assert 'TEMPLATE """{{ .Prompt }}"""' in prompts
    assert "<|user|>{{ .Content }}<e>" in talk
    for text in (prompts, talk):
        assert text.startswith("FROM ./model.gguf\n")
        assert 'PARAMETER stop "<e>"' in text
