"""What all tests share: no network, seeds, tolerances, and tiny models built from configs."""

import gc
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch
from folders import TURNS, bart_folder, bert_folder, llama_folder, rows_file
from in_double import in_double
from jaxtyping import install_import_hook
from tiers import mark_second_tier
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    RobertaForMaskedLM,
    set_seed,
)

# The shapes in the signatures of the maths are enforced while tests run, not only narrated.
SHAPED = ["lorada.functional.product", "lorada.functional.maps", "lorada.tuners.quanta.gates"]
with install_import_hook(SHAPED, "beartype.beartype"):
    import lorada.functional  # noqa: F401

# Everything here is tiny: a second thread would only wait for a core that another test uses.
THREADS = os.environ.get("LORADA_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))
os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # of the processes that tests start

# The same examples on every run. With LORADA_TEST_SEED, which other random tests start from,
# hypothesis draws new ones, or those of its own --hypothesis-seed.
hypothesis.settings.register_profile("fixed", derandomize=True)
if "LORADA_TEST_SEED" not in os.environ:
    hypothesis.settings.load_profile("fixed")

VOCAB = 96
WINDOW = 4  # of the tiny Mistral, in tokens
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert", "roberta")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    # Wide enough that attention is not flat and every change of it reaches the logits.
    "initializer_range": 0.2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER_SIZES = {**SIZES, **SPECIAL, "num_key_value_heads": 2, "max_position_embeddings": 128}


# Two forms of one computation, both in fp64, are this close, absolutely and relatively: the
# rounding of the tiny models is some 1e-13, and a form that is wrong is off by 1e-4 and more.
SAME = 1e-10


def rounding(dtype: torch.dtype, terms: int) -> float:
    """γ = n·u / (1 - n·u), u = eps / 2: the error of a sum of n products, in shares of its size.

    Whatever the order of the sum and however many lanes a processor adds at once, with fused
    multiplication or without, |computed - exact| ≤ γ Σ|x_i y_i| (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1). Of several sums in a row, ``terms`` is that of all together.
    """
    share = terms * torch.finfo(dtype).eps / 2
    return share / (1 - share)


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    terms: int | None = None,
    size: Tensor | float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Equal but for rounding, on any processor.

    Two forms of one computation are compared in fp64 (``pytest.mark.fp64``). Where fp32 or less is
    itself what is tested, both sides may be off by ``rounding`` of the sums that make them: of
    ``terms`` products for each number, whose Σ|x_i y_i| is ``size``, for each or the largest of
    all. ``dtype`` is what was computed in, if not in that of ``expected``.
    """
    dtype = dtype or expected.dtype
    if (dtype == torch.float64) != (terms is None) or (terms is None) != (size is None):
        raise TypeError(
            f"a comparison in {dtype}: in fp64 without terms and size (compare two forms in a test "
            "marked pytest.mark.fp64), below it with both"
        )
    if terms is None:
        torch.testing.assert_close(actual, expected, atol=SAME, rtol=SAME)
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    allowed = 2 * rounding(dtype, terms) * torch.as_tensor(size, dtype=torch.float64)
    error = (actual.double() - expected.double()).abs()
    assert (error <= allowed).all(), (
        f"off by {error.max():.3g}, at most {allowed.max():.3g} allowed"
    )


def assert_all_close(actual: Mapping, expected: Mapping, **below) -> None:
    """Tensors of the same names are equal but for rounding; ``below`` is for ``assert_close``."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(actual[name], tensor, **below)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients that parameters have, by their names."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    actual: Tensor,
    expected: Tensor,
    leaves: Sequence[Tensor],
    copies: Sequence[Tensor] | None = None,
    *,
    more_than: float | None = None,
) -> None:
    """Both have the same values, and the same gradients in one random direction.

    The other form may read ``copies`` instead of ``leaves``. The largest number of each gradient is
    above ``more_than``, if that is given.
    """
    assert_close(actual, expected)
    pull = torch.randn_like(expected)
    found = torch.autograd.grad((actual * pull).sum(), leaves)
    wanted = torch.autograd.grad((expected * pull).sum(), copies or leaves)
    for one, other in zip(found, wanted, strict=True):
        assert more_than is None or other.abs().max() > more_than
        assert_close(one, other)


def in_the_precision_of(node: pytest.Item | pytest.Collector) -> AbstractContextManager:
    """In fp64 where a test, or the module that a fixture belongs to, is marked ``fp64``."""
    marker = node.get_closest_marker("fp64")
    return nullcontext() if marker is None or marker.args == (False,) else in_double()


@pytest.fixture(autouse=True)
def _seeds_and_threads() -> Iterator[None]:
    """Each test begins with one seed, and with the threads of before, which benchmarks change."""
    set_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_finish() -> None:
    """Let no collection of garbage walk through what stays until the end: modules and tests.

    Every training begins with a whole collection, which would take longer than its steps.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Choose the tier of each; begin with the longest test, so that no worker waits at the end."""
    mark_second_tier(items)
    items.sort(key=lambda item: "test_peft_suite" not in item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest):
    with in_the_precision_of(request.node):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    with in_the_precision_of(pyfuncitem):
        return (yield)


def _build(
    model: type[PreTrainedModel], config_class: type, sizes: dict, **changes
) -> PreTrainedModel:
    torch.manual_seed(0)
    return model(config_class(**{**sizes, **changes})).eval()


# Builders of tiny models in eval mode, the same weights on every call; keyword arguments go to
# the config (`TINY["llama"](attn_implementation="eager")`).
TINY = {
    name: partial(_build, model, model.config_class, sizes)
    for name, model, sizes in (
        # Grouped-query attention: 4 query heads on 2 key/value heads.
        ("llama", LlamaForCausalLM, DECODER_SIZES),
        ("mistral", MistralForCausalLM, {**DECODER_SIZES, "sliding_window": WINDOW}),
        ("qwen2", Qwen2ForCausalLM, DECODER_SIZES),
        ("qwen3", Qwen3ForCausalLM, {**DECODER_SIZES, "head_dim": 12}),
        ("bert", BertForMaskedLM, SIZES),
        ("roberta", RobertaForMaskedLM, {**SIZES, "max_position_embeddings": 64}),
    )
}


@pytest.fixture(scope="module")
def place(request, tmp_path_factory) -> Path:
    """A folder of tiny models and rows, where ``folder`` trains the runs of the module.

    The module may say the sizes of its ``LLAMA`` and ``BERT``, and have other ``ROW_FILES``.
    """
    place = tmp_path_factory.mktemp("runs")
    llama_folder(place / "llama", **getattr(request.module, "LLAMA", {}))
    bert_folder(place / "bert", **getattr(request.module, "BERT", {}))
    bart_folder(place / "bart")
    labels = [{"text": "ab" * (i % 3 + 1), "label": "yn"[i % 2]} for i in range(9)]
    scores = [{"text": row["text"], "score": i % 3} for i, row in enumerate(labels)]
    files = {"rows": None, "turns": TURNS, "labels": labels, "scores": scores}
    for name, rows in {**files, **getattr(request.module, "ROW_FILES", {})}.items():
        rows_file(place / f"{name}.jsonl", rows)
    return place


@pytest.fixture(scope="module")
def folder(request, place) -> Callable[[str], Path]:
    """The folder of a run of the module's ``RUNS``, which is trained at its first use."""
    from trained_runs import train_once

    runs, settings = request.module.RUNS, request.module.SETTINGS
    return lambda name: train_once(place, name, runs, settings)


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For a compiler, which cannot see through the checks of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def jobs_here(monkeypatch) -> None:
    """Jobs in the process of the test, where it can change what they call."""
    import jobs_in_process

    from lorada.compare.jobs.pool import Workers  # after the hook that checks shapes

    monkeypatch.setattr(Workers, "start", jobs_in_process.start)
    monkeypatch.setattr(Workers, "wait", jobs_in_process.wait)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Commands that are killed or run out of space; one warmed process for all tests."""
    from crashes import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def made_up_folder(tmp_path_factory):
    """A made-up comparison on disk, which tests only read; ``made_up_summary`` is its summary."""
    from made_up_comparison import write_made_up

    return write_made_up(tmp_path_factory.mktemp("comparison") / "made up", rows=60)


@pytest.fixture(scope="session")
def made_up_summary(made_up_folder):
    from lorada.compare.read_results import read_comparison
    from lorada.compare.report.summarize_comparison import summarize

    return summarize(read_comparison(made_up_folder))


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command as the console script does; returns exit code, stdout and stderr."""
    from lorada import cli  # after the hook that checks shapes

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["lorada", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def works(call):
    """Run a command that has to end well; returns stdout and stderr."""

    def run(*words):
        code, out, err = call(*words)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def mistake(call):
    """Run a command with a mistake; returns the one line that it says about it."""

    def run(*words):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert err.endswith(f"{line}\n")
        return line

    return run


@pytest.fixture
def json_of(works):
    """What a command that has to end well prints with --json, read."""
    return lambda *words: json.loads(works(*words, "--json")[0])
