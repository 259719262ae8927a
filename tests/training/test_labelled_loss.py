"""The loss with logits only where labels count is the model's own loss, in values and gradients."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, ENCODER_DECODERS, _model
from conftest import DECODER_SIZES, ENCODERS, VOCAB, assert_close
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from lorada.data.batches import IGNORED
from lorada.training.models import labelled_loss
from lorada.training.models.labelled_loss import find_labelled_loss

pytestmark = pytest.mark.fp64

NO_DECODERS = (*ENCODERS, *ENCODER_DECODERS, "xlm_roberta", "distilbert", "modernbert", "deberta",
               "deberta_v2", "vit")  # fmt: skip
SCALED = {
    "cohere": partial(_model, "CohereForCausalLM", DECODER_SIZES, logit_scale=0.3),
    "granite": partial(_model, "GraniteForCausalLM", DECODER_SIZES, logits_scaling=3.0),
    # The same name, and it multiplies.
    "hyperclovax": partial(_model, "HyperCLOVAXForCausalLM", DECODER_SIZES, logits_scaling=0.3),
}
DECODERS = {
    **{name: build for name, build in ARCHITECTURES.items() if name not in NO_DECODERS},
    **SCALED,
}
CAPPED = {"final_logit_softcapping": 2.0}
# Decoder and changes of its config: every family, tied or untied, capped logits.
CASES = [
    *((name, {"tie_word_embeddings": i % 2 == 0}) for i, name in enumerate(DECODERS)),
    *((name, CAPPED) for name in ("gemma2", "gemma3")),
]
TOKENS = 9


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(labelled_loss, "CHUNK_BYTES", 3 * 4 * VOCAB)  # three tokens


def batch(packed=False):
    """Four rows, padded on either side; one of them has no label."""
    torch.manual_seed(3)
    ids = torch.randint(5, VOCAB - 6, (4, TOKENS))
    labels = torch.full_like(ids, IGNORED)
    labels[0], labels[1, 6:8], labels[2, 3:] = ids[0], ids[1, 6:8], ids[2, 3:]
    if packed:
        starts = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1, 2])
        return {"input_ids": ids, "labels": labels, "position_ids": starts.expand(4, -1),
                "use_cache": False}  # fmt: skip
    mask = torch.ones_like(ids)
    mask[1, 8:], mask[2, :3] = 0, 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def with_lora(model=None, *, tied=False, **options):
    model = model or DECODERS["llama"](tie_word_embeddings=tied)
    torch.manual_seed(1)
    options = {"target_modules": "all-linear", "r": 2, "init_lora_weights": False, **options}
    config = LoraConfig(fan_in_fan_out=model.config.model_type == "gpt2", **options)
    return get_peft_model(model, config).eval()


def compared(model, inputs):
    """Both losses and the gradients of all that trains; how many tokens had logits."""
    found = find_labelled_loss(model, inputs)
    assert found is not None
    forms = []
    for form in (lambda: (model(**inputs).loss, None, None), lambda: found(model, inputs)):
        model.zero_grad()
        losses, _, outputs = form()
        loss = losses.mean()
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        forms.append((loss.detach(), grads))
    (expected, plain), (loss, grads) = forms
    assert_close(loss, expected)
    assert plain.keys() == grads.keys()
    for name, grad in plain.items():
        assert_close(grads[name], grad)
    assert any(grad.abs().max() > 1e-4 for grad in plain.values())
    compare_each(found, model, inputs)
    return found, outputs.logits.shape[:2].numel()


@torch.no_grad()
def compare_each(found, model, inputs):
    """The loss of each token, with those from all logits."""
    labels = inputs["labels"][:, 1:]
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    each, rows, _ = found(model, inputs)
    assert_close(each, losses[labels != IGNORED].to(each.dtype))
    assert torch.equal(rows, (labels != IGNORED).nonzero()[:, 0])


COUNTED = TOKENS - 1 + 2 + TOKENS - 3


@pytest.mark.parametrize(
    ("name", "changes"), [pytest.param(*case, id=f"{case[0]} {case[1]}") for case in CASES]
)
def test_with_a_frozen_head_no_logits_are_kept_unless_the_model_changes_them(name, changes):
    model = with_lora(DECODERS[name](**changes)).double()
    capped = getattr(model.config, "final_logit_softcapping", None) is not None
    found, made = compared(model, batch())
    assert found.plain == (name not in SCALED and not capped)
    assert made == (0 if found.plain else COUNTED)


def trained_whole(name):
    model = DECODERS[name]()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


TRAINED = {
    **{name: partial(trained_whole, name) for name in ("llama", "gpt2", *SCALED)},
    "an adapter in the head": partial(with_lora, target_modules=["q_proj", "lm_head"]),
    "a copy of the head": partial(with_lora, modules_to_save=["lm_head"]),
    # Of the embeddings, which the head shares.
    "some rows of the head": partial(with_lora, tied=True, trainable_token_indices=[5, 9]),
}


@pytest.mark.parametrize("case", TRAINED)
def test_a_head_of_which_a_part_trains_makes_logits_where_labels_count(case):
    assert compared(TRAINED[case]().double(), batch())[1] == COUNTED


def test_checkpointed_layers_have_the_same_gradients():
    model = with_lora().double()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert compared(model, batch())[1] == 0


def test_rows_in_one_sequence_have_the_loss_of_the_plain_form():
    assert compared(with_lora().double(), batch(packed=True))[1] == 0


def mixture_of_experts(**changes):
    sizes = {**DECODER_SIZES, "num_local_experts": 2, "experts_implementation": "eager"}
    return _model("MixtralForCausalLM", sizes, **changes)


def test_a_model_that_adds_a_loss_of_its_own_computes_it_itself():
    assert find_labelled_loss(mixture_of_experts(output_router_logits=True), batch()) is None
    assert find_labelled_loss(mixture_of_experts(), batch()).plain


ADALORA = AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=1, tfinal=1, deltaT=1,
                        task_type="CAUSAL_LM")  # fmt: skip


@pytest.mark.parametrize("config", [
    ADALORA,
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
], ids=["AdaLoRA adds to it", "virtual tokens before a text"])  # fmt: skip
def test_an_adapter_that_changes_loss_or_text_leaves_the_loss_to_the_model(config):
    assert find_labelled_loss(get_peft_model(DECODERS["llama"](), config), batch()) is None


def test_the_comparison_draws_no_random_numbers_and_changes_no_mode():
    model = with_lora(lora_dropout=0.5).train()
    inputs, before = batch(), torch.get_rng_state()
    assert find_labelled_loss(model, inputs) is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_prefixes_of_keys_and_values_have_the_loss_of_the_plain_form():
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(DECODERS["llama"](), config).eval().double()
    assert compared(model, batch())[1] == 0


def test_a_batch_without_labels_has_no_loss_as_in_the_plain_form():
    model = with_lora().double()
    found, inputs = find_labelled_loss(model, batch()), batch()
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    assert model(**inputs).loss.isnan()
    loss = found(model, inputs)[0].mean()
    loss.backward()
    assert loss.isnan()


@pytest.mark.fp64(False)
def test_mixed_precision_rounds_no_more_than_the_plain_form():
    """Both forms against fp64, in which the gradients of the plain form are exact."""
    model, inputs = with_lora(DECODERS["gemma3"](**CAPPED)), batch()
    exact = copy.deepcopy(model).double()
    exact(**inputs).loss.backward()
    found = find_labelled_loss(model, inputs)
    errors = []
    for form in (lambda: model(**inputs).loss, lambda: found(model, inputs)[0].mean()):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            form().backward()
        pairs = zip(model.parameters(), exact.parameters(), strict=True)
        errors.append(
            sum(float((p.grad - q.grad).norm() ** 2) for p, q in pairs if p.requires_grad)
        )
    plain, ours = errors
    assert 0 < ours <= 2 * plain
