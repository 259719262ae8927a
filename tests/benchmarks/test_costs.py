"""The table of costs: each method beside the same method without lorada, on a tiny LLaMA.

These are the slow twins of whole methods: loss, gradients and update of both are the same.
"""

import gc
from dataclasses import replace

import measure_method_costs as costs
import pytest
from folders import llama_folder
from library import handwritten_methods
from library.agreement import DisagreementError
from library.measuring import Request
from library.reference_parts import HANDWRITTEN
from library.reference_setup import describe_reference
from library.training_setup import benchmark_plan, text_batch
from measure_method_costs import Row, Settings, both_setups, check
from transformers import LlamaConfig

from lorada import METHODS
from lorada.methods.method import Method
from lorada.methods.table import MAP
from lorada.training.models.loading import load_model

# Garbage is collected before each timing; half a second each time with all that is imported.
gc.freeze()

COMPARED = [
    name
    for name, row in costs.rows().items()
    if row.beside != "reference" or describe_reference(benchmark_plan(row.method, LlamaConfig()))
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    # Wide enough that attention is not flat; without the dropout that would draw in the check.
    llama_folder(folder, num_hidden_layers=3, attention_dropout=0.0, initializer_range=0.2)
    return Settings(model=str(folder), length=16, batch=3, repetitions=2, threads=1)


def setups(row, settings):
    base, _ = load_model(settings.model)
    batch = text_batch(
        settings.model, settings.data, settings.batch, settings.length, padded=row.padded
    )
    return row, *both_setups(row, base, batch), batch


@pytest.mark.parametrize("name", COMPARED)
def test_a_method_computes_what_its_reference_does(name, settings):
    check(*setups(costs.rows()[name], settings))


@pytest.mark.more
def test_a_new_method_is_a_row_and_without_a_reference_is_timed_alone(
    settings, tmp_path, monkeypatch
):
    made_up = Method("made up", parts={"llama": {"lmam": {**MAP, "inverse_scale": 2.0}}})
    monkeypatch.setitem(METHODS, "made_up", made_up)
    monkeypatch.setattr(costs, "rows", costs.rows.__wrapped__)  # not those of before
    files = tmp_path / "costs.json", tmp_path / "costs.md"
    results = costs.run(Request(settings, *files, ["made_up"]))
    assert results["rows"]["made_up"]["ours_ms"] > 0
    assert "ratio" not in results["rows"]["made_up"]
    assert "| made_up | none |" in files[1].read_text()


def test_another_update_is_noticed(settings, monkeypatch):
    row, ours, reference, batch = setups(Row("sora"), settings)
    monkeypatch.setattr(handwritten_methods, "soft_threshold", lambda *args, **kwargs: None)
    with pytest.raises(DisagreementError, match="the update of"):
        check(row, ours, reference, batch)


def test_what_does_not_agree_is_not_timed(settings, tmp_path, monkeypatch):
    kind = next(kind for kind in HANDWRITTEN if kind[1] == "series")

    def doubled(model, tensors, part):
        handwritten_methods.series(model, {name: 2 * tensor for name, tensor in tensors.items()})

    monkeypatch.setitem(HANDWRITTEN, kind, replace(HANDWRITTEN[kind], write=doubled))
    with pytest.raises(DisagreementError, match="series was not measured: the loss is"):
        costs.run(Request(settings, tmp_path / "costs.json", tmp_path / "costs.md", ["series"]))
    assert not (tmp_path / "costs.json").exists()
