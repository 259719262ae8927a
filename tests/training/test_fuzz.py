"""Whatever a recipe or a file of rows says, it is taken or refused in one line, and at once."""

import csv
import io
import json
from functools import partial

import pytest
import yaml
from folders import byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from lorada.data.files.read_rows import read_rows
from lorada.data.rows.own_rows import load_rows
from lorada.data.tokenize import encode_rows
from lorada.methods.build import build_method
from lorada.methods.check_overrides import TRAINING, settings_of
from lorada.runs.recipe import Recipe
from lorada.training.arguments import training_arguments
from lorada.training.load_recipe import load_recipe

OURS = (ValueError, OSError, ImportError)
BASE = {"model": "smollm2-135m", "output": "out"}
TINY = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=64)
TOKENIZER = byte_tokenizer()
FUZZ = settings(
    derandomize=True,
    max_examples=25,
    deadline=5000,  # ms: nothing hangs
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def taken_or_refused(act):
    """What ``act`` gives; None where it was refused in one line."""
    try:
        return act()
    except OURS as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


# These change the process itself.
ALONE = {"deepspeed", "fsdp", "fsdp_config", "ddp_backend", "local_rank", "parallelism_config",
         "tf32", "full_determinism", "torch_compile", "torch_compile_backend",
         "torch_compile_mode", "enable_jit_checkpoint"}  # fmt: skip
PARTS = ["lmam", "lora", "bottleneck"]  # of lorada_la
SECTIONS = {name: sorted(set(settings_of(name)) - ALONE) for name in (*PARTS, TRAINING)}
KEYS = [*sorted(Recipe.model_fields), *SECTIONS[TRAINING],
        *(f"{part}.{name}" for part in PARTS for name in SECTIONS[part])]  # fmt: skip
WORDS = ["1e400", ".inf", "-.nan", "no", "steps", "*a", "&a [*a]", "!!str", "0x", "{a: 1}", "[[",
         "1:59", "<<", "{5: 1}", "2024-13-45", "!!int ''"]  # fmt: skip
words = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(words | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)
sections = st.sampled_from(sorted(SECTIONS)).flatmap(
    lambda name: st.dictionaries(
        st.sampled_from(SECTIONS[name]) | words | st.integers(), trees, max_size=3
    ).map(lambda found: {name: found})
)
settings_of_all = st.builds(
    lambda one, other: {**BASE, **one, **other},
    st.dictionaries(st.sampled_from(KEYS) | words | st.integers(), trees, max_size=2),
    sections | sections.map(lambda found: {"parts": found}),
)


def used(recipe):
    """What becomes of a recipe before a model is loaded, and in the files of its run."""
    taken_or_refused(lambda: training_arguments(recipe))
    taken_or_refused(lambda: build_method(recipe.method, TINY, **recipe.parts))
    json.dumps(recipe.model_dump(), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.more
@FUZZ
@given(settings_of_all)
def test_any_tree_of_settings_is_taken_or_refused(tmp_path, tree):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    recipe = taken_or_refused(lambda: load_recipe(str(path), [], {}))
    if recipe is not None:
        used(recipe)
        recipe.save(tmp_path / "run")
        again = load_recipe(str(tmp_path / "run" / "recipe.yaml"), [], {})
        assert again.model_dump() == recipe.model_dump()


HALF = "\ud800"
texts = st.sampled_from(["", HALF, "a"]) | st.text(max_size=6)
numbers = st.sampled_from([10**400, -1, 0, 1, True]) | st.integers() | st.floats()
roles = st.sampled_from(["user", "assistant", "assistant"]) | texts
turns = st.lists(st.fixed_dictionaries({"role": roles, "content": texts}), max_size=3)
USUAL = {
    "messages": turns, "candidates": st.lists(texts, min_size=1, max_size=3), "answer": numbers,
    "label": texts | numbers, "score": numbers | texts,
}  # fmt: skip
FORMS = [("prompt", "response"), ("messages",), ("prompt", "candidates", "answer"),
         ("text", "label"), ("text", "score"), ("text", "text_pair", "label"),
         ("text",)]  # fmt: skip
STRAY = ["eval_prompt", "response", "label", "score", "note"]
cells = st.none() | texts | numbers | turns | st.dictionaries(texts, texts, max_size=2)
rows_of_a_form = st.sampled_from(FORMS).flatmap(
    lambda names: st.lists(
        st.fixed_dictionaries(
            {name: USUAL.get(name, texts) for name in names},
            optional={name: cells for name in STRAY if name not in names},
        ),
        min_size=1,
        max_size=3,
    )
)
rows_of_none = st.lists(
    st.dictionaries(st.sampled_from([*USUAL, *STRAY, "text"]), cells, max_size=4)
)


def read_and_encoded(path):
    """Rows as a run would learn from them, by models that give texts in either way."""
    rows = taken_or_refused(lambda: load_rows(str(path)))
    if rows is None:
        return
    json.dumps([rows.rows, rows.labels, rows.fingerprint], ensure_ascii=False).encode()
    recipe = Recipe(**BASE, max_length=8)
    for kind in ("decoder", "encoder_decoder") if rows.form == "prompt" else ("decoder",):
        taken_or_refused(partial(encode_rows, rows, recipe, TOKENIZER, kind))


@FUZZ
@given(rows_of_a_form | rows_of_none)
def test_any_rows_of_json_are_taken_or_refused(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    read_and_encoded(path)


ENDS = ["\n", "\r\n"]
written = st.text(st.sampled_from("ab,;\"'\n\r\x0b\x0c\x1c\x85\u2028\x00 ü1"), max_size=6)


@FUZZ
@given(
    st.lists(st.lists(written, min_size=2, max_size=2), min_size=1, max_size=3),
    st.sampled_from(ENDS),
    st.sampled_from([("prompt", "response"), ("text", "label"), ("text", "score")]),
)
def test_a_table_is_read_as_it_was_written(tmp_path, table, end, names):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([names, *table])
    path = tmp_path / "rows.csv"
    path.write_bytes(file.getvalue().encode())
    assert [list(row.values()) for row in read_rows(path)] == table
    read_and_encoded(path)
