"""What the untrained model is asked: examples in the prompt, the way to ask, known answers."""

import json
import math

import pytest
import torch
from folders import CHAT, byte_tokenizer, chats, llama_folder, refused, rows_file
from untrained_runs import compared, untrained

from lorada.compare.baselines import few_shot as asking
from lorada.compare.baselines.examples import asked_rows, styles_for
from lorada.compare.baselines.few_shot import few_shot, kept_style
from lorada.compare.baselines.likeliest_answer import closed_set, likeliest_answers
from lorada.compare.baselines.score_baselines import (
    baselines_to_score,
    score_baselines,
    score_given,
    with_written_calls,
)
from lorada.data.rows.own_rows import load_rows
from lorada.inference.generate import Text
from lorada.inference.load import scoring

SUMS = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(4) for b in range(4)]
SIGNS = [
    {"prompt": f"Is {a} > {b}?", "response": " yes" if a > b else " no"}
    for a in range(6)
    for b in range(6)
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


def rows_of(tmp_path, name, rows):
    return load_rows(str(rows_file(tmp_path / f"{name}.jsonl", rows)))


def prompts(rows, train, tokenizer, *, shots=1, draw=1, style="text", room=None):
    asked = asked_rows(
        rows, train, shots=shots, draw=draw, style=style, tokenizer=tokenizer, room=room
    )
    return [row.prompt for row in asked]


def test_no_example_shares_the_group_of_the_row_or_is_the_row_itself(tmp_path, tokenizer):
    grouped = [{**row, "group": f"g{number % 4}"} for number, row in enumerate(SUMS)]
    train = rows_of(tmp_path, "train", grouped[:12])
    alone = [{**SUMS[number], "group": f"new {number}"} for number in (1, 3)]
    asked = rows_of(tmp_path, "asked", [*grouped[12:], grouped[0], *alone])
    for draw in (1, 2, 3):
        for prompt, row in zip(
            prompts(asked, train, tokenizer, shots=12, draw=draw), asked.rows, strict=True
        ):
            *examples, question = prompt.split("\n\n")
            assert question == row["prompt"]
            others = [
                f"{other['prompt']}{other['response']}"
                for other in train.rows
                if other["prompt"] != row["prompt"] and other["group"] != row["group"]
            ]
            assert sorted(examples) == sorted(others)
            assert len(examples) == (11 if row["group"].startswith("new") else 9)


def test_all_rows_of_a_draw_see_examples_in_one_order_and_draws_differ(tmp_path, tokenizer):
    train, asked = rows_of(tmp_path, "train", SUMS[:12]), rows_of(tmp_path, "asked", SUMS[12:])
    orders = set()
    for draw in (1, 2, 3):
        shown = {prompt.rpartition("\n\n")[0] for prompt in prompts(
            asked, train, tokenizer, shots=4, draw=draw
        )}  # fmt: skip
        assert len(shown) == 1
        orders |= shown
    assert len(orders) == 3
    fewer = prompts(asked, train, tokenizer, shots=2, draw=1)[0].rpartition("\n\n")[0]
    more = prompts(asked, train, tokenizer, shots=4, draw=1)[0]
    assert more.startswith(fewer)  # of eight examples the first four are those of four


def test_a_prompt_has_as_many_examples_as_fit_and_says_how_many(tmp_path, tokenizer):
    train, asked = rows_of(tmp_path, "train", SUMS[:12]), rows_of(tmp_path, "asked", SUMS[12:])
    example, question = len("0 + 1 = 1\n\n"), len("3 + 1 =")
    for room, fitting in ((None, 4), (4 * example + question, 4), (3 * example + question, 3),
                          (4 * example + question - 1, 3), (question, 0), (1, 0)):  # fmt: skip
        for row in asked_rows(
            asked, train, shots=4, draw=1, style="text", tokenizer=tokenizer, room=room
        ):
            assert row.examples == fitting
            assert row.tokens == len(row.prompt) == fitting * example + question


def test_a_prompt_is_asked_as_a_text_or_by_the_chat_template(tmp_path, tokenizer):
    train = rows_of(tmp_path, "train", SUMS[5:6])
    asked = rows_of(tmp_path, "asked", SUMS[6:7])
    assert styles_for(asked, tokenizer) == ["text", "chat"]
    assert prompts(asked, train, tokenizer) == ["1 + 1 = 2\n\n1 + 2 ="]
    assert prompts(asked, train, tokenizer, style="chat") == [
        "<|user|>1 + 1 =<e><|assistant|>2<e><|user|>1 + 2 =<e><|assistant|>"
    ]
    assert prompts(asked, train, tokenizer, shots=0) == ["1 + 2 ="]
    bare = byte_tokenizer()
    bare.chat_template = None
    assert styles_for(asked, bare) == ["text"]


def test_examples_are_earlier_turns_of_a_chat_behind_its_own_system_prompt(tmp_path, tokenizer):
    train, asked = chats(("hi", "ho")), chats(("1", "2"))
    train[0]["messages"].insert(0, {"role": "system", "content": "Be rude."})
    train[0]["messages"][-1]["weight"] = 1
    asked[0]["messages"].insert(0, {"role": "system", "content": "Be kind."})
    train, asked = rows_of(tmp_path, "train", train), rows_of(tmp_path, "asked", asked)
    assert styles_for(asked, tokenizer) == ["chat"]
    assert prompts(asked, train, tokenizer, style="chat") == [
        "<|system|>Be kind.<e><|user|>hi<e><|assistant|>ho<e><|user|>1<e><|assistant|>"
    ]


def writes(monkeypatch, answer_to):
    """Let the model write what a function makes of a prompt; the prompts that it was asked."""
    asked = []

    def generate_parts(run, prompts, parts, settings, *, templated):
        asked.extend(prompts)
        return ((index, Text(answer_to(prompts[index]), False)) for index in parts[0])

    monkeypatch.setattr(asking, "generate_parts", generate_parts)
    return asked


@pytest.mark.parametrize("better", ["text", "chat"])
def test_the_way_to_ask_is_chosen_on_training_rows_alone_and_kept(
    place, tmp_path, monkeypatch, better
):
    run, train, held_out = untrained(place, SUMS[:12], SUMS[12:])

    def answer_to(prompt):
        is_chat = prompt.startswith("<|user|>")
        *_, question = prompt.removesuffix("<e><|assistant|>").replace(">", "\n").split("\n")
        right = str(eval(question.removesuffix("=")))
        return right if is_chat == (better == "chat") else "no"

    asked = writes(monkeypatch, answer_to)
    assert kept_style(run, train, 2, tmp_path) == better
    questions = [row["prompt"] for row in held_out[0].rows]
    assert asked
    assert not [prompt for prompt in asked for question in questions if question in prompt]
    asked.clear()
    assert kept_style(run, train, 2, tmp_path) == better
    assert not asked
    (tmp_path / "style.json").write_text('"telepathy"')
    refused("style.json is damaged", lambda: kept_style(run, train, 2, tmp_path))


def test_an_answer_ends_where_the_model_goes_on_with_an_example_of_its_own(
    place, tmp_path, monkeypatch
):
    run, train, held_out = untrained(place, SUMS[:12], SUMS[12:])
    right = {row["prompt"]: row["response"] for row in held_out[0].rows}
    writes(
        monkeypatch, lambda prompt: right[prompt.rpartition("\n\n")[2]] + "\n\n9 + 9 = 18\n\n1 +"
    )
    scored = few_shot(run, train, held_out, 3, "text", tmp_path)
    assert scored.row_scores["exact_match"] == [100.0] * 4
    assert len(scored.other_draws) == 2
    assert scored.title == "3 examples in the prompt"
    # without examples a blank line is part of the answer
    scored = few_shot(run, train, held_out, 0, "text", tmp_path / "none")
    assert scored.row_scores["exact_match"] == [0.0] * 4
    assert scored.other_draws == []


def test_right_answers_with_a_blank_line_are_not_cut_at_it(place, tmp_path, monkeypatch):
    poems = [{"prompt": f"line {n}:", "response": f" a{n}\n\nb{n}"} for n in range(12)]
    run, train, held_out = untrained(place, poems[:9], poems[9:])
    right = {row["prompt"]: row["response"] for row in held_out[0].rows}

    def answer_to(prompt):
        example, question = prompt.split("\n\n###\n\n")
        assert "\n\nb" in example
        return right[question] + "\n\n###\n\nline 99:"

    writes(monkeypatch, answer_to)
    scored = few_shot(run, train, held_out, 1, "text", tmp_path)
    assert scored.row_scores["exact_match"] == [100.0] * 3


def test_draws_that_are_scored_are_read_and_not_asked_again(place, tmp_path, monkeypatch):
    run, train, held_out = untrained(place, SUMS[:12], SUMS[12:], recipe={"max_new_tokens": 2})
    first = few_shot(run, train, held_out, 2, "text", tmp_path)
    (tmp_path / "draw2.json").unlink()
    asked = writes(monkeypatch, lambda prompt: "never")
    again = few_shot(run, train, held_out, 2, "text", tmp_path)
    assert len(asked) == 4
    assert again.row_scores == first.row_scores
    assert again.prompt_tokens == first.prompt_tokens > 20
    (tmp_path / "draw1.json").write_text('{"row_scores": 1}')
    refused("draw1.json is damaged", lambda: few_shot(run, train, held_out, 2, "text", tmp_path))


def test_examples_that_do_not_fit_are_counted_in_the_note(place, tmp_path, monkeypatch):
    run, train, held_out = untrained(place, SUMS[:12], SUMS[12:], recipe={"max_new_tokens": 2})
    writes(monkeypatch, lambda prompt: "6")
    scored = few_shot(run, train, held_out, 8, "text", tmp_path)  # the context is 64 tokens
    assert scored.note == ("asked as a text, of 8 examples 5.0 fit on average, 3 draws of examples")
    assert scored.prompt_tokens == 5 * 11 + 7


def test_a_function_of_the_users_own_scores_answers_to_examples(place, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(
        "def length(prompt, response, answer, row): return len(answer)\n"
    )
    run, train, held_out = untrained(
        place, SUMS[:12], SUMS[12:], recipe={"metric": f"{tmp_path / 'my.py'}:length"}
    )
    writes(monkeypatch, lambda prompt: "five!" if prompt.startswith("<|user|>") else "no")
    style = kept_style(run, train, 1, tmp_path)
    scored = few_shot(run, train, held_out, 1, style, tmp_path)
    assert style == "chat"
    assert scored.row_scores["my.py:length"] == [5.0] * 4


@pytest.mark.parametrize("model", ["bart", "t5"])
def test_an_encoder_decoder_is_asked_with_examples_in_what_its_encoder_reads(
    place, tmp_path, model
):
    run, train, held_out = untrained(
        place, SIGNS[:24], SIGNS[24:], model=model,
        recipe={"max_new_tokens": 2, "max_length": 40},
    )  # fmt: skip
    scored = few_shot(run, train, held_out, 4, "text", tmp_path)
    assert len(scored.row_scores["exact_match"]) == 12
    assert "of 4 examples" in scored.note
    assert scored.prompt_tokens <= 40
    comparison, base, data = compared(place, SIGNS[:24], SIGNS[24:], model=model, shots=[1])
    assert [*baselines_to_score(comparison, data.train, base, tmp_path)] == [
        "shots1", "by_template"
    ]  # fmt: skip


def test_only_few_answers_that_are_repeated_are_a_closed_set(tmp_path):
    for rows, answers in (
        (SIGNS, [" no", " yes"]),
        (SIGNS[:2], []),  # each of one kind once, or all of one
        (SUMS, []),  # 0 and 6 are there once
        ([{"prompt": f"{n}?", "response": f" {n % 21}"} for n in range(42)], []),
        (chats(("a", "b"), ("c", "b"), ("d", "e"), ("f", "e")), ["b", "e"]),
        ([{"text": "a", "label": "n"}, {"text": "b", "label": "y"}] * 2, []),
    ):
        assert closed_set(rows_of(tmp_path, "rows", rows)) == answers


@pytest.mark.parametrize("style", ["text", "chat"])
def test_the_likeliest_answer_is_that_of_the_largest_sum_of_log_probabilities_per_token(
    place, style
):
    run, train, held_out = untrained(place, SIGNS[:24], SIGNS[24:])
    candidates = closed_set(train)
    scored = likeliest_answers(run, train, held_out, candidates, style)
    expected = []
    for row in held_out[0].rows:
        prompt = row["prompt"]
        if style == "chat":
            prompt = f"<|user|>{prompt}<e><|assistant|>"
        means = {answer: log_probability(run, prompt, answer) for answer in candidates}
        expected.append(100.0 * (max(means, key=means.get) == row["response"]))
    assert scored.row_scores["exact_match"] == expected
    assert scored.title == "the likeliest of the known answers"
    assert scored.note.endswith("by the log-probability per token of no, yes")


def log_probability(run, prompt, answer):
    """The mean log-probability of the answer's tokens behind a prompt, one token at a time."""
    begin = run.tokenizer(prompt, add_special_tokens=False).input_ids
    ids = run.tokenizer(answer, add_special_tokens=False).input_ids
    total = 0.0
    with scoring(run, base=False):
        for place, token in enumerate(ids):
            logits = run.model(input_ids=torch.tensor([begin + ids[:place]])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
    assert math.isfinite(total)
    return total / len(ids)


def test_rows_of_several_held_out_files_are_scored_one_after_the_other(
    place, tmp_path, monkeypatch
):
    first = rows_file(tmp_path / "a.jsonl", SUMS[12:14])
    second = rows_file(tmp_path / "b.jsonl", SUMS[14:])
    run, train, held_out = untrained(place, SUMS[:12], SUMS, held_out=f"{first},{second}")
    writes(monkeypatch, lambda prompt: "5" if "3 + 2 =" in prompt else "no")
    scored = few_shot(run, train, held_out, 1, "text", tmp_path)
    assert scored.row_scores["exact_match"] == [0.0, 0.0, 100.0, 0.0]


def test_a_call_of_a_tool_is_right_as_the_template_writes_it(place, tmp_path, monkeypatch):
    def row(item):
        function = {"name": "stock", "arguments": {"item": item}}
        calls = [{"type": "function", "function": function}]
        return {
            "messages": [
                {"role": "user", "content": f"A {item}?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
            ],
            "tools": [{"type": "function", "function": {"name": "stock", "parameters": {}}}],
        }

    llama_folder(tmp_path / "llama", max_position_embeddings=256)
    template = CHAT.replace(
        "{{ m.content }}",
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}call {{ c.function | tojson }}"
        "{% endfor %}",
    )
    tools = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
    (tmp_path / "llama" / "chat_template.jinja").write_text(tools + template)
    rows = [row(f"{colour} lamp") for colour in ("red", "blue", "green", "pink")]
    comparison, base, data = compared(tmp_path, rows[:3], rows[3:], trials=0, shots=[1])
    written = 'call {"name": "stock", "arguments": {"item": "pink lamp"}}'
    example = 'lamp"}}<e><|user|>A pink lamp?<e><|assistant|>'
    asked = writes(monkeypatch, lambda prompt: written)
    score_baselines(comparison, tmp_path)
    assert all(prompt.endswith(example) for prompt in asked if "pink" in prompt)
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["shots1"]["row_scores"]["exact_match"] == [100.0]
    rows_file(tmp_path / "gpt.jsonl", [{"row": 1, "answer": written}])
    given = comparison.model_copy(update={"answers": [str(tmp_path / "gpt.jsonl")]})
    held_out = with_written_calls(data, base.tokenizer).held_out
    (scored,) = score_given(given, held_out, None).values()
    assert scored.row_scores["exact_match"] == [100.0]
