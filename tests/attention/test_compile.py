"""torch.compile and torch.export of a stack: one graph, values and gradients of the eager model."""

import shutil

import pytest
import torch
from conftest import TINY, assert_all_close, assert_close, gradients
from stacks import moved, training_stack
from transformers import StaticCache
from transformers.exporters.utils import apply_patches

# One bucket: batches of any number of rows, padded to multiples of 8 tokens; shorter than the map
# (16 tokens), as long, and longer.
SHAPES = [(3, 24), (2, 16), (5, 24), (4, 40), (3, 8)]


def stack():
    return moved(TINY["llama"](num_hidden_layers=1), training_stack())


def batch(rows, tokens, padding):
    ids = torch.randint(5, 90, (rows, tokens))
    inputs = {"input_ids": ids}
    if padding is not None:
        mask = torch.ones(rows, tokens, dtype=torch.long)
        for row in range(rows - 1):  # each row but the last by another amount
            pads = slice(0, row + 2) if padding == "left" else slice(tokens - row - 2, None)
            mask[row, pads] = 0
        inputs["attention_mask"] = mask
    return inputs


def loss_of(model, inputs):
    labels = inputs["input_ids"]
    if "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    return model(**inputs, labels=labels).loss


def one_graph():
    """Any graph break is an error by fullgraph=True, and so is any recompilation in here."""
    return torch._dynamo.config.patch(error_on_recompile=True)


pytestmark = [pytest.mark.fp64, pytest.mark.usefixtures("shapes_unchecked")]


@pytest.fixture(autouse=True)
def _fresh():
    """No graph of another test."""
    torch._dynamo.reset()


def assert_same_step(compiled, model, inputs, terms=None):
    """The loss and the gradients of one training step, compiled in one graph and eager.

    In fp32 each number is a sum of at most ``terms`` products.
    """
    with one_graph():
        actual = loss_of(compiled, inputs)
        model.zero_grad()
        actual.backward()
    found = gradients(model)
    expected = loss_of(model, inputs)
    model.zero_grad()
    expected.backward()
    wanted = gradients(model)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    below = {} if terms is None else {"terms": terms, "size": largest}
    assert_close(actual, expected, **(below and {**below, "size": expected.detach()}))
    assert_all_close(found, wanted, **below)


INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler"),
        pytest.mark.skipif(" " in torch.__file__, reason="it cannot link a torch behind a blank"),
    ],
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_a_training_step_is_one_graph_for_all_shapes_of_a_bucket(padding, backend):
    model = stack().train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for rows, tokens in SHAPES:
        assert_same_step(compiled, model, batch(rows, tokens, padding))


@pytest.mark.slow
@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_an_evaluation_is_one_graph_for_all_shapes_of_a_bucket(padding):
    model = stack().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), one_graph():
        for rows, tokens in SHAPES:
            inputs = batch(rows, tokens, padding)
            assert_close(compiled(**inputs).logits, model(**inputs).logits)


def packed(sizes):
    """Sequences of these sizes in one row, with what tells them apart."""
    lengths = torch.tensor([0, *sizes]).cumsum(0).int()
    return {
        "input_ids": torch.randint(5, 90, (1, sum(sizes))),
        "position_ids": torch.cat([torch.arange(size) for size in sizes])[None],
        "use_cache": False,
        "cu_seq_lens_q": lengths,
        "cu_seq_lens_k": lengths,
    }


@pytest.mark.more
def test_packed_rows_compile_by_their_lengths_and_are_refused_by_positions_alone():
    model = stack().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = packed([9, 20, 3])
    with torch.no_grad():
        assert_close(compiled(**inputs).logits, model(**inputs).logits)
        del inputs["cu_seq_lens_q"], inputs["cu_seq_lens_k"]
        with pytest.raises(RuntimeError, match="pass cu_seq_lens_q and cu_seq_lens_k too"):
            compiled(**inputs)


@pytest.mark.more
@pytest.mark.parametrize("padding", [None, "left"])
def test_tokens_behind_a_static_cache_are_one_graph(padding):
    """As with mode="reduce-overhead", which captures what is one graph."""
    model = stack().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch(2, 14, padding)
    found = []
    with torch.no_grad():
        for forward in (model, compiled):
            cache = StaticCache(config=model.config, max_cache_len=24)
            given, logits = {**inputs, "past_key_values": cache}, []
            logits.append(model(**given).logits[:, -1])
            for at in range(14, 19):  # beyond the map of 16 tokens
                given["input_ids"] = torch.full((2, 1), 30 + at)
                given["position_ids"] = torch.tensor([[at]])
                if padding is not None:
                    given["attention_mask"] = torch.nn.functional.pad(
                        given["attention_mask"], (0, 1), value=1
                    )
                logits.append(forward(**given).logits[:, -1])
            found.append(torch.stack(logits))
    assert_close(*found)


def export(model, **inputs):
    """A program for any batch and sequence, made from one example."""
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(inputs, sizes)
    plain = WithoutCache(model)
    return torch.export.export(plain, (), inputs, dynamic_shapes=shapes).module()


class WithoutCache(torch.nn.Module):
    """Logits only, as an exported program has them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


@pytest.mark.more
@pytest.mark.parametrize("padding", [None, pytest.param("left", marks=pytest.mark.slow)])
def test_an_exported_baked_model_gives_the_same_logits_for_other_shapes(padding):
    model = stack().eval()
    model.base_model.bake()
    with torch.no_grad():
        program = export(model, **batch(3, 24, padding))
        for rows, tokens in [*SHAPES, (7, 33)]:
            inputs = batch(rows, tokens, padding)
            assert_close(program(**inputs), model(**inputs).logits)


@pytest.mark.slow
@pytest.mark.fp64(False)  # which does not reach into the checkpoints that torch.compile makes
def test_a_training_step_with_checkpoints_is_one_graph():
    model = stack().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.base_model.model.disable_input_require_grads()  # reentrant checkpoints need it
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    # The bottleneck's hooks keep the FFN's input for its output, a side effect torch asks about.
    config = {"skip_fwd_side_effects_in_bwd_under_checkpoint": True}
    with torch._dynamo.config.patch(**config):
        for rows, tokens in SHAPES:
            inputs = {**batch(rows, tokens, "left"), "use_cache": False}
            # Over all tokens, each of which is a sum over the widths of some products in a row.
            assert_same_step(compiled, model, inputs, terms=rows * tokens * 48)


@pytest.mark.more
def test_under_the_functions_of_transformers_exporters_it_traces_and_computes_the_same():
    """They replace some of torch's, such as cummax by one that returns a plain tuple."""
    model, padded, packed = stack().eval(), batch(3, 24, "left"), batch(1, 24, None)
    padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    packed["position_ids"] = torch.arange(24)[None] % 10  # three sequences in a row
    with torch.no_grad():
        expected = [model(**inputs, use_cache=False).logits for inputs in (padded, packed)]
        with apply_patches("onnx"):
            assert not hasattr(torch.arange(3).cummax(-1), "values")
            for inputs, logits in zip((padded, packed), expected, strict=True):
                assert_close(model(**inputs, use_cache=False).logits, logits)
            plain = model.get_base_model()
            program = torch.export.export(plain, (), {**padded, "use_cache": False}).module()
        assert_close(program(**padded, use_cache=False).logits, expected[0])
