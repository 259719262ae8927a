"""What all tests share: no network, seeds, tolerances, and tiny models built from configs."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

# The shapes in the signatures of the maths are enforced while tests run, not only narrated.
SHAPED = ["lorada.blocks", "lorada.functional", "lorada.tuners.gates"]
with install_import_hook(SHAPED, "beartype.beartype"):
    import lorada.functional  # noqa: F401

# Everything here is tiny: a second thread would only wait for a core that another test uses.
torch.set_num_threads(1)

# The tolerances, absolute and relative, of every comparison in these tests.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

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
DECODER_SIZES = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 128}
DECODER_SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the tolerance of the dtype of ``expected``."""
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def _build(
    model: type[PreTrainedModel], config_class: type, sizes: dict, **changes
) -> PreTrainedModel:
    torch.manual_seed(0)
    return model(config_class(**{**sizes, **changes})).eval()


def llama(**changes) -> PreTrainedModel:
    """Grouped-query attention: 4 query heads on 2 key/value heads."""
    return _build(LlamaForCausalLM, LlamaConfig, DECODER_SIZES, **changes)


def mistral(**changes) -> PreTrainedModel:
    """A sliding window of 4 tokens."""
    return _build(
        MistralForCausalLM, MistralConfig, DECODER_SIZES, **{"sliding_window": WINDOW, **changes}
    )


def qwen2(**changes) -> PreTrainedModel:
    return _build(Qwen2ForCausalLM, Qwen2Config, DECODER_SIZES, **changes)


def qwen3(**changes) -> PreTrainedModel:
    return _build(Qwen3ForCausalLM, Qwen3Config, DECODER_SIZES, **{"head_dim": 12, **changes})


def bert(**changes) -> PreTrainedModel:
    return _build(BertForMaskedLM, BertConfig, SIZES, **changes)


def roberta(**changes) -> PreTrainedModel:
    return _build(
        RobertaForMaskedLM, RobertaConfig, SIZES, **{"max_position_embeddings": 64, **changes}
    )


# Builders of tiny models in eval mode, the same weights on every call; keyword arguments go to
# the config (`TINY["llama"](attn_implementation="eager")`).
TINY = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "bert": bert,
    "roberta": roberta,
}


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For a compiler, which cannot see through the checks of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    set_seed(0)


@pytest.fixture(autouse=True)
def runs_happen_here(request, monkeypatch) -> None:
    """Runs of tables and the like in the process of the test, which has everything imported.

    A test that is marked ``apart`` gets the processes that a user gets.
    """
    if not request.node.get_closest_marker("apart"):
        from lorada.run import apart  # after the hook that checks shapes

        def here(function, *arguments, report=None):
            return function(*arguments, **({} if report is None else {"report": report}))

        monkeypatch.setattr(apart, "call", here)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Commands that are killed or run out of space; one warmed process for all tests."""
    from crashes import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


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
