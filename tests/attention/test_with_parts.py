"""One call of a wrapped attention function against the paper's form on the full attention map."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, assert_close
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lorada
from lorada import LmamConfig
from lorada.attention import interface
from lorada.attention.map_term import expand_map
from lorada.attention.observation import observe
from lorada.attention.with_parts import mask_with_map
from lorada.functional.maps import add_map_reference, full_rank_map, low_rank_map

pytestmark = pytest.mark.fp64

LENGTH = 6  # n; longer than the window, shorter than the long samples
ABLATIONS = (None, "no_negative", "softmax", "full_rank", "no_position")
HOSTS = {
    "llama": "model.layers.0.self_attn",
    "mistral": "model.layers.0.self_attn",
    "bert": "bert.encoder.layer.0.attention.self",
}
# Every model under every ablation, but ¬S behind a window, which the reference does not state.
CASES = [(name, ablation) for name in HOSTS for ablation in ABLATIONS]
CASES.remove(("mistral", "softmax"))


ALIGNS = pytest.mark.parametrize("align", ["start", "end"])


def fresh_host(name: str, **options) -> nn.Module:
    """A real self-attention module that holds a map large enough to matter."""
    config = LmamConfig(
        **{"rank": 2, "length": LENGTH, "inverse_scale": 2.0, "init_weights": False, **options}
    )
    return get_peft_model(TINY[name](), config).base_model.model.get_submodule(HOSTS[name])


host = functools.cache(fresh_host)  # for tests that leave the module as it is


class Inputs:
    """Random queries, keys and values of one call, and the mask between them."""

    def __init__(self, module: nn.Module, tokens: int, batch: int = 1, queries: int | None = None):
        self.module, self.tokens = module, tokens
        self.causal = module.is_causal
        self.window = getattr(module.config, "sliding_window", None)
        self.groups = 2 if self.causal else 4
        self.query = torch.randn(batch, 4, queries or tokens, 8)
        self.key = torch.randn(batch, self.groups, tokens, 8)
        self.value = torch.randn(batch, self.groups, tokens, 8)

    @property
    def visible(self) -> Tensor:
        """(B, 1, T, K) booleans."""
        rows, columns = torch.arange(self.tokens)[:, None], torch.arange(self.tokens)
        see = columns <= rows if self.causal else columns == columns
        if self.window is not None:
            see = see & (rows - columns < self.window)
        see = see.expand(len(self.query), 1, self.tokens, self.tokens)
        return see[:, :, -self.query.shape[2] :]

    def call(self, implementation: str, mask: Tensor | None = None, **kwargs) -> Tensor:
        """The output (B, H, T, D) of the registered function; additive mask for eager.

        ``sdpa-unmasked`` gets no mask, as transformers calls it when nothing is padded.
        """
        mask = self.visible if mask is None else mask
        if implementation == "sdpa-unmasked":
            implementation, mask = "sdpa", None
        if implementation == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        if self.window is not None:
            kwargs = {"sliding_window": self.window, "position_ids": self.position_ids, **kwargs}
        function = ALL_ATTENTION_FUNCTIONS[implementation]
        output, _ = function(
            self.module, self.query, self.key, self.value, mask,
            **{"dropout": 0.0, "scaling": 8**-0.5, **kwargs},
        )  # fmt: skip
        return output.transpose(1, 2)

    @property
    def position_ids(self) -> Tensor:
        return torch.arange(self.tokens)[None, -self.query.shape[2] :]

    def probabilities(self) -> Tensor:
        key = self.key.repeat_interleave(4 // self.groups, 1)
        scores = self.query @ key.mT / math.sqrt(8)
        return scores.masked_fill(~self.visible, -math.inf).softmax(-1)

    def reference(self) -> Tensor:
        """Attn^ V in the paper's form."""
        (held,) = self.module.lmam.maps()
        make = full_rank_map if held.ablation == "full_rank" else low_rank_map
        factors = (factor.to(self.value.dtype) for factor in held.factors)
        map_ = make(*factors, 2.0, position=held.ablation != "no_position")
        if self.window is not None:
            map_ = map_ * torch.ones_like(map_).triu(1 - self.window)
        inner = None if held.ablation in ("full_rank", "no_position") else held.ablation
        fused = add_map_reference(
            self.probabilities(), map_, align=held.align, causal=self.causal, ablation=inner
        )
        return fused @ self.value.repeat_interleave(4 // self.groups, 1)


def implementations(inputs: Inputs) -> list[str]:
    """What transformers may call for these inputs: no mask while no key is out of sight."""
    whole = inputs.query.shape[2] in (1, inputs.tokens)
    unmasked = whole and (inputs.window is None or inputs.tokens < inputs.window)
    return ["sdpa", "eager", "sdpa-unmasked"] if unmasked else ["sdpa", "eager"]


@pytest.mark.parametrize(
    ("name", "ablation"), CASES, ids=[f"{name}-{ablation or 'whole'}" for name, ablation in CASES]
)
@ALIGNS
@pytest.mark.parametrize(
    ("tokens", "queries"), [(3, None), (LENGTH, None), (9, None), (9, 1)], ids=str
)
def test_whole_samples_and_rows_behind_a_cache_equal_the_papers_form(
    name, ablation, align, tokens, queries
):
    inputs = Inputs(host(name, align=align, ablation=ablation), tokens, 2, queries)
    for implementation in implementations(inputs):
        assert_close(inputs.call(implementation), inputs.reference())


@ALIGNS
def test_who_observes_learns_which_pairs_of_tokens_have_an_entry(align):
    inputs, seen = Inputs(host("bert", align=align), 9), []
    with observe(seen.append):
        inputs.call("sdpa-unmasked")
    entries = expand_map(seen[0].learned_map, seen[0].call)[:, 0]
    assert torch.equal(seen[0].positions.pairs(LENGTH), entries != 0)


def test_no_negative_under_a_mask_of_keys_alone_is_an_error():
    with pytest.raises(ValueError, match="no_negative ablation needs"):
        Inputs(host("llama", ablation="no_negative"), 9).call("sdpa", mask=torch.ones(1, 9))
    with pytest.raises(ValueError, match="no_negative ablation needs"):
        mask_with_map(None, None, SimpleNamespace(kernel="flash"))


@pytest.mark.parametrize(
    "packing",
    [{"cu_seq_lens_q": torch.tensor([0, 4, 9])},
     {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}],
    ids=["lengths", "positions"],
)  # fmt: skip
def test_packed_sequences_that_see_each_other_are_an_error(packing):
    with pytest.raises(ValueError, match=r"packed into one row .* pass use_cache=False"):
        Inputs(host("llama"), 9).call("sdpa-unmasked", **packing)


def test_paged_cache_that_keeps_its_values_to_itself_is_an_error():
    remedy = r"='sdpa' and, .* ContinuousBatchingConfig\(auto_switch_to_flash=False\)"
    with pytest.raises(ValueError, match=remedy):
        Inputs(host("llama"), 9).call("sdpa", block_table=torch.zeros(1))


@pytest.mark.parametrize("ablation", [None, "softmax"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropout_never_touches_the_term(implementation, ablation):
    module = fresh_host("llama", ablation=ablation).train()
    inputs = Inputs(module, 9)
    terms = []
    with observe(lambda seen: terms.append((seen.output, seen.term))):
        calm = inputs.call(implementation)
        dropped = inputs.call(implementation, dropout=0.9)
    (attended, term), (dropped_attended, same_term) = terms
    assert not torch.allclose(attended, dropped_attended, atol=0.1)
    assert torch.equal(term, same_term)
    assert_close(calm.transpose(1, 2) - attended, term)
    assert_close(dropped.transpose(1, 2) - dropped_attended, term)


@pytest.fixture
def late_implementation():
    """Registers an attention function that no wrapper has seen; removes it afterwards."""
    interface.install()
    original = ALL_ATTENTION_FUNCTIONS["sdpa"].__wrapped__

    def late(*args, **kwargs):
        return original(*args, **kwargs)

    def register() -> str:
        AttentionInterface.register("late", late)
        AttentionMaskInterface.register("late", sdpa_mask)
        return "late"

    yield register
    AttentionInterface._global_mapping.pop("late")
    AttentionMaskInterface._global_mapping.pop("late")


def test_implementation_registered_later_is_an_error_until_it_is_installed(late_implementation):
    model = get_peft_model(TINY["llama"](), LmamConfig(length=LENGTH, init_weights=False))
    tokens = torch.arange(3, 12)[None]
    expected = model(tokens).logits
    model.base_model.model.set_attn_implementation(late_implementation())
    with pytest.raises(ValueError, match=r"'late' was registered after the adapter .*install\(\)"):
        model(tokens)
    with pytest.raises(ValueError, match="was registered after the adapter"):
        model.base_model.model.model(tokens)  # past the model's own forward, as AdaLoRA goes
    lorada.attention.install()  # as the error says
    assert_close(model(tokens).logits, expected)


def test_a_decoder_is_guarded_where_its_encoder_has_run_before(late_implementation):
    model = get_peft_model(ARCHITECTURES["bart"](), LmamConfig(length=LENGTH)).eval()
    tokens = torch.arange(3, 9)[None]
    encoded = model(tokens, decoder_input_ids=tokens).encoder_last_hidden_state
    model.base_model.model.set_attn_implementation(late_implementation())
    with pytest.raises(ValueError, match="was registered after the adapter"):
        model(encoder_outputs=(encoded,), decoder_input_ids=tokens)


def simple_eager_attention_forward(module, query, key, value, attention_mask, **kwargs):
    return query + 1, None


def test_eager_is_the_function_that_the_module_names_itself():
    class Simple(torch.nn.Module):  # as TimesFM and the vision part of Llama 4 do
        def forward(self, x):
            interface = ALL_ATTENTION_FUNCTIONS.get_interface(
                "eager", simple_eager_attention_forward
            )
            return interface(self, x, x, x, None)[0]

    interface.install()
    assert torch.equal(Simple()(torch.zeros(2)), torch.ones(2))
