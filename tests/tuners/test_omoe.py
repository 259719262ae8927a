"""OmoeConfig: orthogonal LoRA and DoRA experts, against loops over tokens and experts."""

import pytest
import torch
from conftest import DECODER_SIZES, TINY, assert_close
from peft import LoraConfig, PeftModel, get_peft_model
from stacks import HIDDEN, LAYERS, batch, bottleneck, lmam, logits, lora, randomise
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorada import LoradaConfig, OmoeConfig
from lorada.tuners.omoe import orthogonalise, row_norms

pytestmark = pytest.mark.fp64

RANK, INNER = 2, DECODER_SIZES["intermediate_size"]
FFN = {"llama": None, "roberta": ["intermediate.dense"]}


def omoe(**options) -> OmoeConfig:
    return OmoeConfig(**{"rank": RANK, "alpha": 4, "dropout": 0.0, **options})


def adapted(name: str = "llama", **options) -> PeftModel:
    """A tiny model with experts whose weights have moved, in eval mode."""
    model = get_peft_model(TINY[name](), omoe(target_modules=FFN[name], **options)).eval()
    randomise(model)
    return model


def one_layer(**options) -> nn.Module:
    """The layer around one matrix with a bias, in fp64, its weights moved."""
    model = nn.Sequential(nn.Linear(6, 5))
    model = get_peft_model(model, omoe(target_modules=["0"], **options)).double().eval()
    randomise(model)
    return model.base_model.model[0]


def by_hand(layer: nn.Module, x: Tensor, *, top2=False, normalize=False) -> Tensor:
    """y of one token, by the equations, with every expert's dense weight."""
    base, scale = layer.base_layer, 4 / RANK
    down, up = layer.lora_down["default"], layer.lora_up["default"]
    outputs = []
    for i in range(len(down)):
        dense = base.weight + scale * up[i] @ down[i]
        if "default" in layer.lora_magnitude:
            norms = dense.detach().norm(dim=1)
            dense = (layer.lora_magnitude["default"][i] / norms)[:, None] * dense
        e = dense @ x - base.weight @ x
        u = e - sum((e @ v / (v @ v) * v for v in outputs), torch.zeros_like(e))
        outputs.append(u)
    gates = torch.softmax(layer.lora_router["default"] @ x, 0)
    if top2:
        least = gates.sort().values[-2]
        gates = torch.where(gates < least, 0, gates)
        gates = gates / gates.sum()
    mixed = [g * (u / u.norm() if normalize else u) for g, u in zip(gates, outputs, strict=True)]
    return base(x) + torch.stack(mixed).sum(0)


@pytest.mark.parametrize("use_dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="soft"),
        pytest.param({"experts": 4, "routing": "top2"}, id="top2"),
        pytest.param({"experts": 3, "normalize": True}, id="normalised"),
    ],
)
def test_a_layer_computes_the_equations_of_each_token_with_their_gradients(options, use_dora):
    layer = one_layer(use_dora=use_dora, **options)
    parameters = [p for n, p in layer.named_parameters() if "lora" in n]
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 5, dtype=torch.float64)
    kind = {"top2": "routing" in options, "normalize": "normalize" in options}

    actual = layer(x)
    slow = torch.stack([by_hand(layer, token, **kind) for token in x.flatten(0, 1)])
    expected = slow.unflatten(0, (2, 3))

    assert_close(actual, expected)
    got = torch.autograd.grad((actual * weights).sum(), [x, *parameters])
    for fast, twin in zip(
        got, torch.autograd.grad((expected * weights).sum(), [x, *parameters]), strict=True
    ):
        assert twin.abs().max() > 0
        assert_close(fast, twin)


@pytest.mark.parametrize("experts", [2, 4])
def test_the_outputs_of_the_experts_are_orthogonal_and_the_first_stays_as_it_is(experts):
    branches = torch.randn(3, experts, 64)
    vectors = orthogonalise(branches)

    products = vectors @ vectors.mT
    assert_close(products, torch.diag_embed(products.diagonal(dim1=-2, dim2=-1)))
    assert products.diagonal(dim1=-2, dim2=-1).min() > 1
    assert torch.equal(vectors[:, 0], branches[:, 0])
    unit = orthogonalise(branches, normalize=True)
    assert_close(unit @ unit.mT, torch.eye(experts).expand(3, -1, -1))


@pytest.mark.fp64(False)
def test_half_precision_outputs_are_made_orthogonal_in_fp32():
    branches = torch.randn(3, 1, 64) + 0.01 * torch.randn(3, 2, 64)  # nearly parallel
    first, second = orthogonalise(branches.bfloat16()).unbind(1)

    assert first.dtype == torch.float32
    cosine = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    assert cosine.abs().max() < 1e-3


def test_experts_that_say_nothing_give_zeros_and_finite_gradients():
    branches = torch.zeros(1, 3, 8, requires_grad=True)
    for normalize in (False, True):
        vectors = orthogonalise(branches, normalize)
        (gradient,) = torch.autograd.grad(vectors.sum(), branches)
        assert torch.equal(vectors, torch.zeros(1, 3, 8))
        assert gradient.isfinite().all()


def test_row_norms_are_those_of_the_dense_weights(monkeypatch):
    monkeypatch.setattr("lorada.tuners.omoe.ROWS", 4)  # several pieces
    weight, down = torch.randn(10, 6).double(), torch.randn(3, RANK, 6).double()
    up = torch.randn(3, 10, RANK).double()

    expected = (weight + 2.0 * up @ down).norm(dim=2)
    assert_close(row_norms(weight, down, up, 2.0), expected)


def test_no_dense_weight_of_an_expert_is_formed(monkeypatch):
    layer = one_layer(experts=3)
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(tuple(out.shape[-2:]) if out.dim() > 2 else ())
            return out

    with Watch():
        layer(torch.randn(1, 7, 6, dtype=torch.float64))
    assert sizes
    assert (5, 6) not in sizes


def test_one_dora_expert_is_the_dora_of_peft():
    model = adapted(experts=1)
    config = LoraConfig(
        r=RANK, lora_alpha=4, use_dora=True, target_modules=["gate_proj", "up_proj", "down_proj"]
    )
    twin = get_peft_model(TINY["llama"](), config).eval()
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "lora_" in name:
                for theirs, ours in (
                    ("lora_A.default.weight", "lora_down.default"),
                    ("lora_B.default.weight", "lora_up.default"),
                    ("lora_magnitude_vector.default.weight", "lora_magnitude.default"),
                ):
                    if theirs in name:
                        parameter.copy_(state[name.replace(theirs, ours)][0])
    inputs = batch("llama")
    assert_close(logits(model, inputs), logits(twin, inputs))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, 49_299_456),  # LLaMA2-7B
        (
            {
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 8192,
            },
            60_162_048,  # LLaMA3-8B
        ),
    ],
    ids=["llama2-7b", "llama3-8b"],
)
def test_the_defaults_count_what_the_paper_prints(sizes, expected):
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**sizes))
    model = get_peft_model(base, OmoeConfig())
    assert model.get_nb_trainable_parameters()[0] == expected


@pytest.mark.parametrize("use_dora", [True, False], ids=["dora", "lora"])
def test_only_experts_and_routers_train_and_their_count_is_the_formula(use_dora):
    model = get_peft_model(TINY["llama"](), omoe(experts=3, use_dora=use_dora))
    per_layer = 3 * (RANK * 3 * (HIDDEN + INNER) + 2 * HIDDEN + INNER)
    per_layer += 3 * (2 * INNER + HIDDEN) * use_dora
    trained = {n for n, p in model.named_parameters() if p.requires_grad}

    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * per_layer
    assert all(".lora_" in name and ".mlp." in name for name in trained)


@pytest.mark.parametrize("name", FFN)
def test_a_fresh_adapter_changes_nothing_and_learns(name):
    inputs, base = batch(name), TINY[name]()
    expected = logits(base, inputs)
    model = get_peft_model(base, omoe(target_modules=FFN[name], dropout=0.05))
    assert_close(logits(model.eval(), inputs), expected)

    labels, losses = inputs["input_ids"], []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_normalised_form_starts_away_from_the_base_and_its_b_is_small():
    inputs, base = batch("llama"), TINY["llama"]()
    expected = logits(base, inputs)
    model = get_peft_model(base, omoe(normalize=True)).eval()

    assert (logits(model, inputs) - expected).abs().max() > 1e-3
    ups = [p for n, p in model.named_parameters() if "lora_up" in n]
    assert 5e-4 < torch.cat([p.flatten() for p in ups]).std() < 2e-3


@pytest.mark.parametrize("name", FFN)
def test_a_saved_adapter_gives_the_same_logits_and_disabling_gives_the_base(name, tmp_path):
    inputs, model = batch(name), adapted(name, experts=3, routing="top2")
    expected, base = logits(model, inputs), logits(TINY[name](), inputs)
    assert (expected - base).abs().max() > 0.1

    model.save_pretrained(tmp_path)
    assert_close(logits(PeftModel.from_pretrained(TINY[name](), tmp_path), inputs), expected)
    with model.disable_adapter():
        assert_close(logits(model, inputs), base)
    assert_close(logits(model.unload(), inputs), base)


def test_a_second_adapter_with_another_number_of_experts_sits_beside_the_first():
    inputs, model = batch("llama"), adapted()
    first = logits(model, inputs)
    model.add_adapter("other", omoe(experts=3, use_dora=False, target_modules=["up_proj"]))
    randomise(model, "other")

    assert_close(logits(model, inputs), first)
    model.set_adapter("other")
    second = logits(model, inputs)
    assert (second - first).abs().max() > 0.1
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".other" in name and ".up_proj." in name for name in trained)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert_close(logits(model, inputs), first)


def test_it_stacks_with_a_map_lora_and_a_bottleneck(tmp_path):
    inputs = batch("llama")
    parts = [lmam(), lora("llama"), omoe(), bottleneck()]
    base = TINY["llama"]()
    plain = logits(base, inputs)
    model = get_peft_model(base, LoradaConfig(parts=parts)).eval()
    assert_close(logits(model, inputs), plain)
    randomise(model)
    expected = logits(model, inputs)

    model.save_pretrained(tmp_path)
    assert_close(logits(PeftModel.from_pretrained(TINY["llama"](), tmp_path), inputs), expected)
    for merge in (model.merge_and_unload, model.merge_adapter, model.merge_weights):
        with pytest.raises(ValueError, match=r"OmoeConfig cannot be merged.*keep it"):
            merge()
    assert_close(logits(model, inputs), expected)
    assert_close(logits(model.unload(), inputs), plain)


def test_experts_go_around_a_lora_of_the_same_matrix():
    inputs = batch("llama")
    inner = LoraConfig(r=2, target_modules=["up_proj"])
    model = get_peft_model(
        TINY["llama"](), LoradaConfig(parts=[inner, omoe(target_modules=["up_proj"])])
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    with_lora = get_peft_model(TINY["llama"](), inner).eval()
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in with_lora.named_parameters():
            if "lora_" in name:
                parameter.copy_(names[name.replace(".up_proj.", ".up_proj.base_layer.")])
    assert_close(logits(model, inputs), logits(with_lora, inputs))


def test_it_keeps_to_its_layers_loads_from_meta_and_refuses_another_width(tmp_path):
    inputs, model = batch("llama"), adapted(layers_to_transform=[1])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".layers.1." in name for name in trained)
    expected = logits(model, inputs)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path, low_cpu_mem_usage=True)
    assert_close(logits(loaded.eval(), inputs), expected)
    wider = TINY["llama"](intermediate_size=64)
    with pytest.raises(ValueError, match="was saved for another model size"):
        PeftModel.from_pretrained(wider, tmp_path)
    assert not any("lora" in name for name, _ in wider.named_parameters())


def test_alone_it_cannot_be_merged_and_says_so():
    model = adapted()
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=r"cannot be merged.*keep them"):
            merge()


def test_a_mixed_batch_gives_each_sample_its_own_experts():
    model, inputs = adapted(), batch("llama")
    model.add_adapter("other", omoe())
    randomise(model, "other")
    rows = {}
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        rows[adapter] = logits(model, inputs)
    with model.disable_adapter():
        rows["__base__"] = logits(model, inputs)
    names = ["other", "__base__", "default"]
    mixed = logits(model.eval(), inputs, adapter_names=names)
    assert_close(mixed, torch.stack([rows[n][i] for i, n in enumerate(names)]))
    assert (rows["default"] - rows["other"]).abs().max() > 1e-3


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant):
    inputs, gradients = batch("llama"), []
    for checkpointing in (False, True):
        model = adapted().train()
        if checkpointing:
            kind = {"use_reentrant": reentrant}
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(checkpointed, plain)


@pytest.mark.fp64(False)
def test_a_bfloat16_base_keeps_fp32_experts_and_its_start():
    inputs, base = batch("llama"), TINY["llama"]().bfloat16()
    expected = logits(base, inputs)
    model = get_peft_model(base, omoe()).eval()

    assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.float32}
    assert torch.equal(logits(model, inputs), expected)
    half = get_peft_model(TINY["llama"]().bfloat16(), omoe(), autocast_adapter_dtype=False)
    assert {p.dtype for n, p in half.named_parameters()} == {torch.bfloat16}
    assert logits(half, inputs).isfinite().all()


@pytest.mark.fp64(False)
def test_autocast_leaves_the_norms_in_fp32_and_the_start_the_base():
    inputs, base = batch("llama"), TINY["llama"]()
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(base, inputs)
        model = get_peft_model(base, omoe()).eval()
        assert torch.equal(logits(model, inputs), expected)
        weight, down, up = torch.randn(5, 6), torch.randn(2, 3, 6), torch.randn(2, 5, 3)
        norms = row_norms(weight, down, up, 2.0)
    expected = (weight + 2.0 * up @ down).norm(dim=2)
    # The squares are what is summed; what they are off by is off the norm as a share of twice it.
    squares = (weight.abs() + 2.0 * up.abs() @ down.abs()).square().sum(2)
    assert_close(norms, expected, terms=6 + 2 * 3 + 4, size=squares / expected)


def test_gpt2_with_its_transposed_matrices_takes_experts():
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    inputs, base = batch("llama"), GPT2LMHeadModel(config).eval()
    expected = logits(base, inputs)
    model = get_peft_model(base, omoe(target_modules=["c_fc"])).eval()

    assert_close(logits(model, inputs), expected)
    layer = model.get_base_model().transformer.h[0].mlp.c_fc
    assert layer.lora_down["default"].shape == (2, RANK, 32)
    assert layer.lora_magnitude["default"].shape == (2, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts=0 must be a whole number above 0"),
        ({"rank": 1.5}, "rank=1.5 must be a whole number above 0"),
        ({"alpha": -1}, "alpha=-1 must be a number above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"routing": "hard"}, "routing='hard' is not one of 'soft', 'top2'"),
        ({"experts": 1, "routing": "top2"}, "routing='top2' needs two experts or more"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        omoe(**options)


def test_modules_that_cannot_hold_experts_are_refused():
    with pytest.raises(ValueError, match="embed_tokens, which is Embedding and not a linear layer"):
        get_peft_model(TINY["llama"](), omoe(target_modules=["embed_tokens"]))
    with pytest.raises(ValueError, match="no default target_modules for bert models: choose"):
        get_peft_model(TINY["bert"](), omoe())
    base = TINY["llama"]()
    base.model.layers[1].mlp.up_proj.weight = nn.Parameter(
        torch.zeros(INNER, HIDDEN, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(
        ValueError, match=r"quantised, which OMoE on model.layers.1.mlp.up_proj does"
    ):
        get_peft_model(base, omoe())
    assert not any("lora" in name for name, _ in base.named_parameters())
