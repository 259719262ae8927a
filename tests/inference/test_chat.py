"""Chats with a finished run: it answers as ``generate`` does, and so does its base."""

import pytest
from folders import refused
from peft import PeftModel

from lorada.data.tokenize import prompt_of
from lorada.inference.chat import open_chat
from lorada.inference.generate import generate
from lorada.inference.load import load_run

SETTINGS = ["max_steps=2", "learning_rate=0.1", "report_to=[]", "max_length=32", "max_new_tokens=8"]
# Run → model, method, rows, and settings of its own.
RUNS = {
    "mine.v1": ("llama", "lorada_la", "rows", ["lmam.init_weights=false"]),
    "talk": ("llama", "lorada_la", "turns", ["lmam.init_weights=false"]),
    "lora": ("llama", "lora", "rows", []),
    "seq2seq": ("bart", "lmam+lora", "rows", ["lmam.init_weights=false"]),
    "whole": ("llama", "full", "rows", []),
}
QUESTION = "1 + 1 ="


@pytest.fixture
def chat_of(folder):
    return lambda name, **options: open_chat(folder(name), **options)


def answer(chat, question=QUESTION, **options):
    """An answer, which is what was shown of it."""
    shown = []
    found = chat.ask(question, shown.append, **options)
    assert "".join(shown) == found
    return found


def of_base(chat):
    shown = []
    text = chat.write(chat.base_prompt(), shown.append, base=True)
    assert "".join(shown) == text
    return text


def base_alone(run, question=QUESTION):
    with run.model.disable_adapter():
        return generate(run, [question])[0]


@pytest.mark.parametrize("name", ["mine.v1", "talk", "seq2seq", "whole"])
def test_run_and_base_answer_as_generate_writes_with_and_without_the_adapter(name, chat_of, folder):
    chat, run = chat_of(name), load_run(folder(name))
    own = answer(chat)
    assert own == generate(run, [QUESTION])[0]
    if name != "whole":  # which has no base beside it
        assert of_base(chat) == base_alone(run) != own
        chat.reset()
        assert answer(chat) == own  # the adapter is on again


def test_a_conversation_goes_on_where_rows_were_conversations(chat_of):
    chat = chat_of("talk")
    first = answer(chat, "a")
    of_base(chat)
    chat.ask("b", str)
    turns = [("user", "a"), ("assistant", first), ("user", "b"), ("assistant", "")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert chat.last == prompt_of(row, "messages", chat.run.tokenizer)
    chat.reset()
    chat.ask("c", str)
    assert "<|assistant|>" not in chat.last.removesuffix("<|assistant|>")


def test_a_conversation_that_has_no_room_loses_its_first_questions(chat_of, caplog):
    chat = chat_of("talk", system="be kind")
    caplog.clear()  # its training may just have warned
    for number in range(6):
        chat.ask(f"012{number}", str)
    assert "left out the first question to fit the model's context" in caplog.text
    assert "lost their middle" not in caplog.text
    assert "be kind" in chat.last
    assert "0125" in chat.last
    assert "0120" not in chat.last
    assert chat.turns[0]["role"] == "user"
    chat.ask("0" * 200, str)  # too long by itself
    assert "1 of 1 prompts lost their middle to fit the model" in caplog.text


def test_a_stopped_answer_is_a_beginning_of_the_whole_one(chat_of):
    chat, shown = chat_of("lora"), []
    whole = answer(chat)

    def press(piece):
        shown.append(piece)
        if piece:
            raise KeyboardInterrupt

    first = chat.ask(QUESTION, press)
    assert "".join(shown) == first != whole
    assert whole.startswith(first)
    assert answer(chat) == whole


def test_beam_search_shows_its_answer_at_once(chat_of, folder):
    chat = chat_of("lora")
    chat.run.model.generation_config.num_beams = 2
    shown = []
    text = chat.ask(QUESTION, shown.append)
    assert shown == [text]
    assert [text] == generate(chat.run, [QUESTION])


def test_what_has_no_answer_is_refused(chat_of):
    chat = chat_of("whole")
    refused("no answer yet: ask something first", chat.base_prompt)
    chat.ask(QUESTION, str)
    assert not isinstance(chat.run.model, PeftModel)
    refused("no adapter to switch off", chat.base_prompt)
    refused("the prompt is empty", lambda: chat.ask("", str))
    refused("max_new_tokens=64 leaves no room", lambda: chat_of("lora", max_new_tokens=64))
