"""``lorada chat`` in a pipe: answers on the output, everything else on the error stream."""

import io
import signal
import sys

import pytest
from folders import llama_folder, rows_file

from lorada.cli import use_commands
from lorada.inference import chat as chat_module

LLAMA = {"initializer_range": 0.2}
SETTINGS = ["max_steps=2", "learning_rate=0.02", "report_to=[]", "max_length=32"]
SETTINGS += ["max_new_tokens=8"]
RUNS = {"map [b]": ("llama", "lorada_la", "rows", []), "talk": ("llama", "lora", "turns", [])}
QUESTION = "1 + 1 ="


@pytest.fixture
def chat(call, folder, monkeypatch):
    """Type lines into a chat with a run; returns exit code, answers and notes."""

    def typed(lines, name, options=()):
        text = lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return call("chat", folder(name), *options)

    return typed


@pytest.fixture
def written(json_of, folder):
    """What ``lorada generate`` writes."""

    def text(name, prompt=QUESTION, *options):
        return json_of("generate", folder(name), "--prompt", prompt, *options)[0]["output"]

    return text


@pytest.mark.more
def test_answers_alone_go_to_the_output(chat, written, place):
    code, out, err = chat([QUESTION, "", QUESTION], "map [b]")
    assert code == 0
    assert out == f"{written('map [b]')}\n" * 2
    assert "\x1b" not in out + err
    about, keys, following = err.splitlines()
    assert about == (
        f"map [b]: lorada_la on {place / 'llama'}; it continues each line by itself, as a prompt"
    )
    assert keys == "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
    assert following.startswith("next: lorada evaluate ")


def test_lines_of_a_file_from_windows_are_read_without_their_ends(chat, written):
    assert chat(f"{QUESTION}\r\n/quit\r\n", "map [b]")[1] == f"{written('map [b]')}\n"


def test_an_answer_has_as_many_tokens_as_is_said(chat, written):
    options = ("--max-new-tokens", 3)
    _, out, _ = chat([QUESTION], "map [b]", options)
    assert out == f"{written('map [b]', QUESTION, *options)}\n"


def test_the_base_answers_below_the_adapter(chat, written):
    _, out, err = chat([QUESTION, "/base", "/quit", QUESTION], "map [b]")
    own, base = out.split("base:\n")
    assert own == f"{written('map [b]')}\n" != base
    assert "error" not in err


PRICES = {"red lamp": 17, "blue chair": 25, "green mug": 8}


def order_desk(count):
    """Chats of two questions, each with its answer."""
    rows = []
    for number in range(count):
        item = list(PRICES)[number % 3]
        pieces, price = number // 3 % 3 + 1, PRICES[item]
        said = (
            f"Do you have a {item}?", f"Yes! The {item} costs {price} euros. How many?",
            ("One", "Two", "Three")[pieces - 1],
            f"Done: {pieces} {item}{'s' * (pieces > 1)}, {pieces * price} euros.",
        )  # fmt: skip
        turns = zip(("user", "assistant") * 2, said, strict=True)
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows


@pytest.mark.more
def test_a_run_of_chats_gives_the_first_answer_first(call, works, tmp_path, monkeypatch):
    rows = rows_file(tmp_path / "desk.jsonl", order_desk(120))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
    model, run = llama_folder(tmp_path / "llama", attention_dropout=0.0, **sizes), tmp_path / "run"
    settings = ["max_steps=160", "learning_rate=3e-3", "per_device_train_batch_size=12"]
    settings += ["max_length=256", "max_new_tokens=60", "report_to=[]"]
    works("train", "--method", "full", "--model", model, "--data", rows, "--output", run, *settings)
    typed = "Do you have a red lamp?\nTwo\n/reset\nDo you have a green mug?\nThree\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    _, out, _ = call("chat", run)
    assert out.splitlines() == [
        "Yes! The red lamp costs 17 euros. How many?", "Done: 2 red lamps, 34 euros.",
        "Yes! The green mug costs 8 euros. How many?", "Done: 3 green mugs, 24 euros.",
    ]  # fmt: skip
    few = rows_file(tmp_path / "few.jsonl", order_desk(2))
    _, out, _ = call("evaluate", run, "--data", few)
    assert out.splitlines()[-1] == f"next: lorada chat {run}"


@pytest.mark.more
def test_a_conversation_is_read_until_it_is_forgotten(chat, written):
    _, out, err = chat(["0123"] * 3, "talk")
    first = written("talk", "0123") + "\n"
    assert out.startswith(first)
    assert "it reads the conversation so far, in the tokenizer's chat template" in err
    _, again, err = chat(["0123", "/reset"] * 3, "talk")
    assert again == first * 3
    assert err.count("the conversation is forgotten") == 3


def test_a_conversation_begins_with_what_the_system_says_and_keeps_it(chat, monkeypatch):
    asked, stream = [], chat_module.stream

    def noted(run, prompt, *more):
        asked.append(prompt)
        return stream(run, prompt, *more)

    monkeypatch.setattr(chat_module, "stream", noted)
    chat(["01", "01", "/reset", "01"], "talk", options=("--system", "b"))
    assert asked[0] == asked[-1] == "<|system|>b<e><|user|>01<e><|assistant|>"
    assert all(prompt.startswith("<|system|>b<e><|user|>01<e>") for prompt in asked)


def test_what_is_no_command_is_said_in_one_line_and_the_chat_goes_on(chat, written):
    lines = ["/bsae", "/base 2 + 2 =", "/help me", " /x", QUESTION]
    code, out, err = chat(lines, "map [b]")
    assert code == 0
    assert "error: unknown command '/bsae'; did you mean /base" in err
    assert "error: /base answers the last question: leave '2 + 2 =' out" in err
    assert all(f"{name} " in err for name in use_commands.CHAT_COMMANDS)
    assert out == f"{written('map [b]', ' /x')}\n{written('map [b]')}\n"


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(chat, written, monkeypatch):
    show, presses = use_commands._show_piece, [signal.SIGINT]

    def press(piece):
        show(piece)
        if presses:
            signal.raise_signal(presses.pop())

    monkeypatch.setattr(use_commands, "_show_piece", press)
    code, out, _ = chat([QUESTION, QUESTION], "map [b]")
    whole = written("map [b]")
    assert code == 0
    stopped, _, rest = out.partition("\n")
    assert whole.startswith(stopped)
    assert len(stopped) < len(whole)
    assert rest == f"{whole}\n"
