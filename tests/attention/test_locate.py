"""The tokens of a batch are located once per forward, and no forward waits for the device."""

import copy
import pickle

import pytest
import torch
from conftest import TINY, assert_close
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from lorada import LmamConfig
from lorada.attention import locate as locating
from lorada.attention import under_map
from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs, forward_listener

pytestmark = pytest.mark.fp64

LAYERS = 3
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}


def adapted(name: str, **options):
    base = TINY[name](num_hidden_layers=LAYERS)
    defaults = {"rank": 2, "length": 6, "inverse_scale": 2.0, "init_weights": False}
    return get_peft_model(base, LmamConfig(**{**defaults, **options}))


def batch(*lengths: int, side: str = "right"):
    ids = torch.full((len(lengths), max(lengths)), 1)
    mask = torch.zeros_like(ids)
    for row, (length, real) in enumerate(zip(lengths, mask, strict=True)):
        place = slice(0, length) if side == "right" else slice(max(lengths) - length, None)
        ids[row, place] = torch.arange(10, 10 + length)
        real[place] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def located(monkeypatch):
    """The calls of ``locate``."""
    calls, locate = [], locating.locate

    def counted(*args, **kwargs):
        calls.append(args)
        return locate(*args, **kwargs)

    monkeypatch.setattr(locating, "locate", counted)
    return calls


def test_a_result_is_computed_once_for_the_same_tensors_unchanged():
    inputs, asked = ForwardInputs(results={}), []
    one, other = torch.zeros(2), torch.zeros(2)

    def ask(inputs, *tensors, others=()):
        return inputs.once(lambda: asked.append(0) or len(asked), tensors, *others)

    assert ask(inputs, one) == ask(inputs, one) == 1
    assert ask(inputs, other) == 2
    assert ask(inputs, one, others=("else",)) == 3
    assert ask(inputs, one, other) == 4
    assert ask(inputs, one, None) == 5
    assert ask(inputs, one) == 1
    one.add_(1)
    assert ask(inputs, one) == 6
    assert [ask(NOTHING_KNOWN, one) for _ in range(2)] == [7, 8]  # outside of a forward


@pytest.mark.parametrize("grad", [False, True])
def test_a_forward_keeps_results_for_its_backward_pass_only(grad):
    model = adapted("llama")
    listener = forward_listener(model.get_base_model())
    with torch.set_grad_enabled(grad):
        model(**batch(9, 4))
    assert bool(listener.inputs.results) == grad
    assert listener.inputs == NOTHING_KNOWN  # but for the results
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert forward_listener(other.get_base_model()).inputs.results is None


@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_all_layers_ask_once_where_the_tokens_are(name, located):
    model = adapted(name)
    model(**batch(9, 4))
    assert len(located) == 1
    model(**batch(9, 4))
    assert len(located) == 2  # another batch is another question


@pytest.mark.slow  # flex attention compiles itself
@pytest.mark.fp64(False)  # which it does not know on a CPU
@torch.no_grad()
def test_all_layers_ask_flex_attentions_mask_once(located):
    model = adapted("llama").eval()
    batches = [batch(9, 4), batch(4, 9)]
    model.set_attn_implementation("flex_attention")
    found = [model(**inputs).logits for inputs in batches]
    assert len(located) == 2
    model.set_attn_implementation("eager")
    for inputs, logits in zip(batches, found, strict=True):
        real = inputs["attention_mask"].bool()
        expected = model(**inputs).logits[real]
        # Sums over keys and widths, some in a row; the largest logit is as large as their parts.
        assert_close(logits[real], expected, terms=9 * 48 * 2, size=expected.abs().max())


def test_a_batch_seen_in_inference_mode_can_be_learned_from():
    model = adapted("llama", ablation="softmax").train()
    inputs = {key: x for key, x in batch(9, 4).items() if key == "input_ids"}
    inputs["attention_mask"] = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    inputs["position_ids"] = torch.arange(9)[None]
    fresh = copy.deepcopy(model)
    with torch.inference_mode():
        model(**inputs)
    for one in (model, fresh):
        one(**inputs).logits.sum().backward()
    gradients = {key: p.grad for key, p in fresh.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * LAYERS
    for key, gradient in gradients.items():
        assert gradient.any()
        assert_close(model.get_parameter(key).grad, gradient)


def test_gradient_checkpointing_asks_once_more_and_gives_the_same_gradients(located):
    model = adapted("llama").train()
    inputs = batch(9, 4)
    model(**inputs).logits.sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    before = len(located)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**inputs).logits.sum().backward()
    # Outside of the model's forward nobody tells whether the positions are its own.
    assert len(located) == before + 2
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient)


class Reads(TorchDispatchMode):
    """Counts operations that hand numbers of a tensor to Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def reads(model, **inputs) -> int:
    with Reads() as counter:
        model(**inputs)
    return counter.count


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_no_forward_waits_for_numbers_on_the_device(name, align, side):
    model = adapted(name, align=align)
    inputs = batch(9, 9 if side is None else 4, side=side or "right")
    if side is None:
        del inputs["attention_mask"]
    with model.disable_adapter():
        base = reads(model, **inputs)
    assert reads(model, **inputs) == base


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"align": "end"}, {"positions": "raw"}, {"ablation": "softmax"},
     {"ablation": "no_negative"}, {"ablation": "full_rank"}, {"length": 4}, {"length": 20}],
    ids=str,
)  # fmt: skip
def test_forward_and_backward_need_no_number_of_any_tensor(options, masked):
    """Fake tensors have none, and every way to ask for one fails."""
    with FakeTensorMode():
        model = adapted("llama", **options).train()
        ids = torch.ones(2, 9, dtype=torch.long)
        mask = torch.ones(2, 1, 9, 9, dtype=torch.bool) if masked else None
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_decoding_step_waits_either(name, masked, monkeypatch):
    monkeypatch.setattr(under_map, "can_be_read", lambda numbers: False)  # as on a device
    model = adapted(name).eval()
    counts = []
    for disabled in (True, False):
        cache, seen = DynamicCache(config=model.config), 0
        for ids in torch.arange(10, 24).repeat(2, 1).split([7, 1, 1, 5], 1):
            seen += ids.shape[1]
            mask = {"attention_mask": torch.ones(2, seen, dtype=torch.long)} if masked else {}
            positions = torch.arange(seen - ids.shape[1], seen)[None]
            inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": cache, **mask}
            if disabled:
                with model.disable_adapter():
                    counts.append(reads(model, **inputs))
            else:
                # Whether the positions of a prefill start anew, which would be refused.
                looks = int(cache.get_seq_length() == 0)
                assert reads(model, **inputs) <= counts.pop(0) + looks


def test_packed_positions_are_looked_at_once_for_all_layers():
    model = adapted("llama", align="start")
    ids = torch.arange(10, 22)[None]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with model.disable_adapter():
        base = reads(model, **inputs)
    assert base < reads(model, **inputs) <= base + 2  # whether they restart, and how many there are


PACKED = {
    "input_ids": torch.arange(10, 22)[None],
    "position_ids": torch.cat([torch.arange(5), torch.arange(7)])[None],
}


def test_packed_rows_with_an_empty_cache_are_refused():
    model = adapted("llama")
    with pytest.raises(ValueError, match="see each other"):
        model(**PACKED, past_key_values=DynamicCache(config=model.config))


def test_lengths_of_the_queries_alone_are_those_of_the_keys():
    model = adapted("llama").eval()
    ends = torch.tensor([0, 5, 12])
    inputs = {**PACKED, "use_cache": False, "cu_seq_lens_q": ends}
    both, one = (model(**inputs, cu_seq_lens_k=keys).logits for keys in (ends, None))
    assert_close(one, both)
