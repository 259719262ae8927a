"""Calls of tools: how templates get them, which are refused, how long they are and how scored."""

import json

import pytest
from folders import CHAT, byte_tokenizer, refused, rows_file
from test_chats import CALL, learned, with_template

from lorada.data.answer_length import answer_limit
from lorada.data.rows.own_rows import load_rows
from lorada.data.rows.row_content import answer_of
from lorada.data.scoring.metrics import contains, exact_match
from lorada.data.tokenize import prompt_of, written_calls
from lorada.data.tool_calls import calls_in
from lorada.training.load_recipe import load_recipe

TOOLS = [{"type": "function", "function": {"name": "stock", "parameters": {}}}]
LAMP = {"item": "lamp", "room": 2}
# One that joins texts, as DeepSeek's does, and one that writes calls as Python does.
JOINS = CALL.replace("c.function | tojson", "c.function.name + ' ' + c.function.arguments")
PYTHON = CALL.replace(
    "c.function | tojson",
    "c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }} "
    "{% endfor %}){{ ''",
)
SHOWS = CALL.replace("c.function | tojson", "c.function.name }} {{ c.function.arguments")


def called(arguments=LAMP, content="", name="stock", **more):
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    asked = {"role": "user", "content": "How many lamps?"}
    return {
        "messages": [asked, {"role": "assistant", "content": content, "tool_calls": calls}],
        "tools": TOOLS, **more,
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("arguments", [LAMP, json.dumps(LAMP)])
def test_arguments_are_written_alike_as_object_and_as_json_text(arguments, content):
    text = {
        template: learned(called(arguments, content), with_template(byte_tokenizer(), template))[1]
        for template in (CALL, JOINS, SHOWS)
    }
    written = json.dumps({"name": "stock", "arguments": LAMP})
    assert text[CALL].endswith(f"<|assistant|>⟦call {written}<e>⟧")
    for other in (JOINS, SHOWS):  # the latter would show an object as Python does
        assert text[other].endswith(f"<|assistant|>⟦call stock {json.dumps(LAMP)}<e>⟧")


def test_a_template_that_leaves_out_tools_or_calls_is_refused_with_the_remedy():
    tokenizer = with_template(byte_tokenizer(), CHAT)
    tokenizer.name_or_path = "some/model"
    remedy = "give a template that writes them with chat_template=FILE"
    for content in ("", None):
        refused(f"chat template of some/model leaves out calls of tools: {remedy}",
                lambda content=content: learned(called(content=content), tokenizer))  # fmt: skip
    answered = called()
    answered["messages"][1] = {"role": "assistant", "content": "Two."}
    refused(f"leaves out the tools of a row: {remedy}", lambda: learned(answered, tokenizer))
    refused("leaves out the tools", lambda: prompt_of(answered, "messages", tokenizer))
    no_names = CALL.replace("{{ c.function | tojson }}", "{{ c.function.arguments | tojson }}")
    refused("leaves out calls of tools",
            lambda: learned(called(), with_template(byte_tokenizer(), no_names)))  # fmt: skip


def test_a_template_that_takes_texts_as_lists_alone_is_refused():
    lists = CHAT.replace("{{ m.content }}", "{% for c in m.content %}{{ c.text }}{% endfor %}")
    said = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    refused("leaves out the texts of turns",
            lambda: learned(said, with_template(byte_tokenizer(), lists)))  # fmt: skip


def test_the_answer_of_a_template_that_marks_it_is_what_it_marks(tmp_path):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
        "{% for c in m.tool_calls or [] %}call {{ c.function | tojson }}{% endfor %}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<e>{% endfor %}{{ tools | tojson }}"
        "{% if add_generation_prompt %}<|assistant|>think{% endif %}"  # no prefix of the whole
    )
    assert answer_of(written(called(), template, tmp_path)).startswith('call {"name": "stock"')


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([{"function": {"name": "stock", "arguments": '{"item": lamp'}}], "call of stock are not"),
        ([{"function": {"name": "stock", "arguments": "[1]"}}], r"are \[1\]: they must be a JSON"),
        ([{"function": {"arguments": {}}}], "each with name and arguments"),
        ({"name": "stock"}, "must be a list of calls"),
    ],
)
def test_calls_that_cannot_be_read_are_refused(calls, said):
    row = called()
    row["messages"][1]["tool_calls"] = calls
    refused(said, lambda: learned(row, with_template(byte_tokenizer(), CALL)))


def written(row, template, tmp_path):
    rows = load_rows(str(rows_file(tmp_path / "rows.jsonl", [row])), "messages")
    (found,) = written_calls(rows, with_template(byte_tokenizer(), template)).rows
    return found


@pytest.mark.first
def test_a_call_is_right_by_name_and_arguments_whatever_the_spelling(tmp_path):
    row = written(called(), CALL, tmp_path)
    right = answer_of(row)
    assert right == 'call {"name": "stock", "arguments": {"item": "lamp", "room": 2}}'

    def scores(answer):
        return exact_match([answer], [row])["exact_match"], contains(answer, row)

    spelled = 'Sure: {"arguments":{"room":2.0,"item":"lamp"},"name":"stock"}'
    assert scores(right) == scores(spelled) == (100, 100)
    assert scores(f"{right} {right.replace('lamp', 'sofa')}") == (0, 100)
    for wrong in ("", "17", right.replace("lamp", "sofa"), right.replace("stock", "price"),
                  right.replace("2", "true"), right[:-2]):  # fmt: skip
        assert scores(wrong) == (0, 0)


def test_calls_that_are_not_written_as_json_are_compared_as_text(tmp_path):
    row = written(called(), PYTHON, tmp_path)
    assert answer_of(row) == 'call stock(item="lamp" room=2 )'
    assert exact_match(['call  stock(item="lamp"\nroom=2 )'], [row])["exact_match"] == 100
    assert exact_match(['call stock(item="sofa" room=2 )'], [row])["exact_match"] == 0


def test_calls_are_found_in_a_text_at_any_depth():
    text = '{a} [{"name": "x", "parameters": {"k": {"name": "y", "arguments": 1}}}] {"function": '
    text += '{"name": "z", "arguments": "{}"}} {"name": 3, "arguments": {}}'
    assert [call.name for call in calls_in(text)] == ["x", "z"]


def test_an_empty_right_answer_is_not_contained_in_every_answer():
    row = {"prompt": "a", "response": " "}
    assert [contains(answer, row) for answer in ("", " ", "b")] == [100, 100, 0]


def test_the_limit_of_an_answer_counts_a_call_as_it_is_written(tmp_path):
    rows = load_rows(str(rows_file(tmp_path / "rows.jsonl", [called(content=None)] * 2)))
    recipe = load_recipe(None, [], {"model": "-", "output": "-"})
    tokenizer = with_template(byte_tokenizer(), CALL)
    size = len('call {"name": "stock", "arguments": {"item": "lamp", "room": 2}}')
    assert answer_limit(rows, recipe, tokenizer, "decoder", None) == size + -(-size // 10)
