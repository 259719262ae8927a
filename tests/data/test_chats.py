"""Which tokens of a chat are learned, by templates of several kinds, and beside TRL."""

from itertools import groupby
from pathlib import Path

import pytest
from conftest import TINY
from datasets import Dataset
from folders import byte_tokenizer, refused
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lorada.data.batches import IGNORED
from lorada.data.tokenize import EncodeOptions, encode, learned_ends, prompt_of

HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HEAD_THAT_THINKS = HEAD.replace("assistant\n", "assistant\n<think>\n")
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TEMPLATES = {
    "default system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + TURN + "{% endfor %}" + HEAD
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
        "{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
    ),
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} "
        "[/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "an end behind the whole": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "marks": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}" + HEAD
    ),
    "marks and ends": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant"
        "{{ '\n' }}{%- generation -%}{{ m.content }}<|im_end|>\n{% endgeneration %}"
        "{% else %}" + TURN + "{% endif %}{% endfor %}" + HEAD
    ),
}  # fmt: skip
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + HEAD
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
ADDED = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"]
ASKED, SAID = ["Do you have a lamp?", "Two"], ["Yes! How many?", "Done: 2 lamps."]


def chat(*more, asked=ASKED, said=SAID):
    turns = [
        {"role": role, "content": text}
        for pair in zip(asked, said, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": [*more, *turns]}


SYSTEM = {"role": "system", "content": "Be brief."}


def with_template(tokenizer, template):
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    tokenizer.chat_template = template
    return tokenizer


def spaced_tokenizer():
    """A tokenizer of pieces of words that puts a space before each text, as LLaMA 2's does."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    texts = [*TEMPLATES.values(), *ASKED, *SAID, "Be brief. Help."] * 3
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<p>", "<s>", "<e>"])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<p>", bos_token="<s>", eos_token="<e>"
    )


TOKENIZERS = {"bytes": byte_tokenizer, "spaced": spaced_tokenizer}


def learned(row, tokenizer, **options):
    """The ids of a row, and its text with ⟦⟧ around what counts in the loss."""
    (found,) = encode([row], "messages", tokenizer, EncodeOptions(1024, **options))
    ids, text = found.features["input_ids"], ""
    pairs = zip(ids, found.features["labels"], strict=True)
    for counts, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        piece = tokenizer.decode([one for one, _ in group]).lstrip(" ")
        text += f"⟦{piece}⟧" if counts else piece
    return ids, text


def stretches(row, tokenizer, **options):
    return learned(row, tokenizer, **options)[1].split("⟦")[1:]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.first
def test_every_answer_of_the_assistant_counts_with_its_end(name, kind):
    tokenizer = with_template(TOKENIZERS[kind](), TEMPLATES[name])
    more = () if name == "llama 2" else (SYSTEM,)
    for row in (chat(), chat(*more)):
        ids, _ = learned(row, tokenizer)
        assert ids == tokenizer.apply_chat_template(row["messages"])["input_ids"]
        found = [one.partition("⟧")[0] for one in stretches(row, tokenizer)]
        assert len(found) == 2
        end = tokenizer.decode(learned_ends("messages", tokenizer)[-1])
        for text, said in zip(found, SAID, strict=True):
            assert text.strip().startswith(f"{said}{' ' * (name == 'llama 2')}{end}")
            assert text.replace("<e>", "").replace("<|im_end|>", "").strip() == said
        # What an answer is generated from is what it was learned behind.
        before = tokenizer(prompt_of(row, "messages", tokenizer), add_special_tokens=False)
        assert ids[: len(before["input_ids"])] == before["input_ids"]


def test_the_last_answer_alone_counts_if_asked_and_everything_too():
    tokenizer = with_template(byte_tokenizer(), TEMPLATES["default system"])
    assert stretches(chat(), tokenizer, loss_on="last") == [f"{SAID[1]}<|im_end|>\n⟧"]
    (every,) = stretches(chat(), tokenizer, loss_on="all")
    assert every.endswith("<|im_end|>\n⟧")
    assert "Two" in every
    marks = with_template(byte_tokenizer(), TEMPLATES["marks"])
    assert stretches(chat(), marks, loss_on="last") == [f"{SAID[1]}<|im_end|>\n⟧"]


@pytest.mark.parametrize("name", ["default system", "marks"])
def test_an_answer_of_weight_0_is_read_and_not_learned(name):
    tokenizer = with_template(byte_tokenizer(), TEMPLATES[name])
    row = chat()
    row["messages"][1]["weight"] = 0
    assert [one.partition("<")[0] for one in stretches(row, tokenizer)] == SAID[1:]
    row["messages"][3]["weight"] = 0
    for loss_on in ("response", "last"):
        (found,) = encode([row], "messages", tokenizer, EncodeOptions(1024, loss_on=loss_on))
        assert not found.features


def test_a_token_over_the_beginning_of_an_answer_is_cut_as_in_generating():
    tokenizer = with_template(spaced_tokenizer(), TEMPLATES["default system"])
    tokenizer.add_tokens(["assistant\nYes"])
    row = chat(asked=ASKED[:1], said=SAID[:1])
    ids, text = learned(row, tokenizer)
    assert text.endswith(f"assistant\n⟦{SAID[0]}<|im_end|> \n⟧")
    before = tokenizer(prompt_of(row, "messages", tokenizer), add_special_tokens=False)
    assert ids[: len(before["input_ids"])] == before["input_ids"]


def test_an_opening_by_the_assistant_is_read_and_not_learned():
    tokenizer = with_template(byte_tokenizer(), TEMPLATES["default system"])
    opening = {"role": "assistant", "content": "Hello!"}
    found = stretches(chat(opening), tokenizer)
    assert [one.partition("<")[0] for one in found] == SAID


def test_a_chat_with_an_opening_alone_or_without_a_last_answer_is_not_an_error():
    tokenizer = with_template(byte_tokenizer(), TEMPLATES["default system"])
    asked = {"role": "user", "content": "A lamp?"}
    opening = {"messages": [{"role": "assistant", "content": "Hello!"}, asked]}
    (found,) = encode([opening], "messages", tokenizer, EncodeOptions(1024))
    assert not found.features  # nothing is learned of it
    unanswered = {"messages": [*chat()["messages"], asked]}
    assert [one.partition("<")[0] for one in stretches(unanswered, tokenizer)] == SAID
    refused("the last turn, which is none of the assistant: leave it out",
            lambda: learned(unanswered, tokenizer, loss_on="last"))  # fmt: skip


def test_a_chat_that_is_cut_keeps_the_answers_before_the_cut():
    tokenizer = with_template(byte_tokenizer(), TEMPLATES["default system"])
    whole = len(learned(chat(), tokenizer)[0])
    (cut,) = encode([chat()], "messages", tokenizer, EncodeOptions(whole - 30))
    assert cut.truncated
    kept = tokenizer.decode([one for one in cut.features["labels"] if one != IGNORED])
    assert kept == f"{SAID[0]}<|im_end|>\n"


CALL = (
    "{% if tools %}tools: {% for t in tools %}{{ t.function.name }}{% endfor %}<e>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}call {{ c.function | tojson }}{% endfor %}<e>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


CALLED = 'call {"name": "stock", "arguments": {"item": "lamp"}}'


def test_tools_and_their_calls_go_to_the_template():
    tokenizer = with_template(byte_tokenizer(), CALL)
    calls = [{"type": "function", "function": {"name": "stock", "arguments": {"item": "lamp"}}}]
    row = {
        "messages": [
            {"role": "user", "content": "A lamp?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "17"},
            {"role": "assistant", "content": "17 euros."},
        ],
        "tools": [{"type": "function", "function": {"name": "stock", "parameters": {}}}],
    }
    expected = (
        "tools: stock<e><|user|>A lamp?<e><|assistant|>⟦" + CALLED + "<e>⟧"
        "<|tool|>17<e><|assistant|>⟦17 euros.<e>⟧"
    )
    assert learned(row, tokenizer)[1] == expected
    assert prompt_of(row, "messages", tokenizer).startswith("tools: stock<e><|user|>")


def test_a_template_that_writes_a_turn_differently_later_is_refused_by_name():
    tokenizer = with_template(byte_tokenizer(), THINKING)
    tokenizer.name_or_path = "some/thinker"
    refused("chat template of some/thinker renders a turn differently .* loss_on=last, which",
            lambda: learned(chat(), tokenizer))  # fmt: skip
    last = stretches(chat(), tokenizer, loss_on="last")
    assert last == [f"<think></think>{SAID[1]}<|im_end|>\n⟧"]
    opening = with_template(byte_tokenizer(), THINKING.replace(HEAD, HEAD_THAT_THINKS))
    for loss_on in ("response", "last"):  # no turn alone would do
        refused("drop or begin thinking: .*take rows of prompt and response",
                lambda how=loss_on: learned(chat(), opening, loss_on=how))  # fmt: skip
    strict = with_template(byte_tokenizer(), NO_SYSTEM + TEMPLATES["default system"])
    refused("the chat template refuses the turns system, user, .*no system",
            lambda: learned(chat(SYSTEM), strict))  # fmt: skip


# A template without marks, and the one with marks that TRL takes in its place; or one for both.
BESIDE_TRL = ["llama3", "gemma", "phi3", "qwen2_5_training", "qwen3_training"]
THEIR_ENDS = [
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>",
]  # fmt: skip


@pytest.mark.parametrize("name", BESIDE_TRL)
def test_the_tokens_that_count_are_those_of_trls_assistant_only_loss(name, tmp_path):
    trl = pytest.importorskip("trl", reason="needs the train extra: pip install 'lorada[train]'")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": THEIR_ENDS})
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / f"{name}.jinja").read_text(encoding="utf-8")
    config = trl.SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, max_length=1024, use_cpu=True,
        bf16=False, report_to=[], disable_tqdm=True, eos_token="<e>",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        TINY["llama"](vocab_size=300), config, train_dataset=Dataset.from_list([chat()]),
        processing_class=tokenizer,
    )  # fmt: skip
    (theirs,) = trainer.train_dataset
    (ours,) = encode([chat()], "messages", tokenizer, EncodeOptions(1024))
    assert ours.features["input_ids"] == theirs["input_ids"]
    assert ours.features["labels"] == theirs["labels"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_follows_the_last_answer_counts_where_everything_does(name):
    tokenizer = with_template(byte_tokenizer(), TEMPLATES[name])
    asked = {"role": "user", "content": "And a sofa?"}
    row = {"messages": [*chat()["messages"], asked]}
    (found,) = encode([row], "messages", tokenizer, EncodeOptions(1024, loss_on="all"))
    assert found.features["labels"] == found.features["input_ids"]
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert tokenizer.decode(found.features["labels"]) == whole
