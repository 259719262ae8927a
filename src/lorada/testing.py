"""``check_method``: the contracts that every method here keeps, run on a tuner of your own.

    from lorada.testing import CHECKS, check_method

    check_method(my_package.my_method)  # raises an AssertionError that says what is wrong

For a test of each: ``@pytest.mark.parametrize("check", CHECKS)``, then
``CHECKS[check](my_package.my_method)``. Models are tiny (a LLaMA and a BERT, in float64), so all of
it takes some seconds.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lorada.methods.build import choose_settings, settings_for
from lorada.methods.lookup import as_method
from lorada.methods.peft_method import PeftMethod
from lorada.tuners import LmamConfig, LoradaConfig

__all__ = ["CHECKS", "check_method"]

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "LLaMA": (LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2)),
    "BERT": (BertForMaskedLM, BertConfig(**SIZES)),
}
# How far two outputs may lie apart that should be equal, as a share of what the adapter changes. A
# tuner may compute in float32.
ROUNDING = 1e-4
MOVED = 0.3  # the standard deviation of what is added to each parameter, as after a training


def check_method(method: PeftMethod) -> None:
    """Check a method of your own by all contracts of ``CHECKS``.

    Args:
        method: what ``--methods package:object`` names.

    Raises:
        AssertionError: if it breaks one, with the name of the check and what is wrong.
    """
    for name, check in CHECKS.items():
        try:
            check(method)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def starts_at_the_base(method: PeftMethod) -> None:
    """A new adapter changes no output, so a training begins at the model as it is."""
    for kind, base, config in _placements(method):
        expected = _outputs(base)
        model = get_peft_model(copy.deepcopy(base), config).double().eval()
        difference = _distance(_outputs(model), expected)
        assert difference < 1e-6, (
            f"a new adapter changes the outputs of a {kind} by {difference:.2g}, where it should "
            "change none: start a factor of what it adds at zero"
        )


def trains_its_parameters_alone(method: PeftMethod) -> None:
    """What trains is new, all of it gets a gradient, and the base gets none."""
    for kind, base, config in _placements(method):
        own_names = {name for name, _ in base.named_parameters()}
        model = _moved(base, config)
        # PEFT wraps the model, and a tuner the layers that it is on.
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained, f"nothing trains on a {kind}: let the tuner's parameters need gradients"
        for name in trained:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert plain not in own_names, f"{plain} of the base trains: freeze it"
        model(**_inputs()).logits.square().mean().backward()
        for name, parameter in trained.items():
            gradient = parameter.grad
            assert gradient is not None, f"{name} trains and gets no gradient: does forward use it?"
            assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
            assert gradient.abs().max() > 0, f"the gradient of {name} is 0 in a moved adapter"


def switches_off(method: PeftMethod) -> None:
    """With the adapter switched off, the model is the base again."""
    for kind, base, config in _placements(method):
        expected = _outputs(base)
        model = _moved(base, config)
        changed = _distance(_outputs(model), expected)
        assert changed > 1e-6, f"an adapter with moved parameters changes nothing on a {kind}"
        with model.disable_adapter():
            difference = _distance(_outputs(model), expected)
        assert difference < ROUNDING * changed, (
            f"with the adapter switched off a {kind} differs from its base by {difference:.2g}: "
            "let forward heed disable_adapters"
        )


def comes_back_from_its_file(method: PeftMethod) -> None:
    """A saved adapter gives the same outputs on a fresh base, alone and in a stack.

    Raises:
        AssertionError: if they differ by more than rounding, relative to what the adapter changes.
    """
    for kind, base, config in _placements(method):
        for stack in (config, _stack(config, kind)):
            model = _moved(base, stack)
            expected, changed = _outputs(model), _distance(_outputs(model), _outputs(base))
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                saved = load_file(f"{folder}/adapter_model.safetensors")
                # In float64, so that rounding cannot hide a small difference.
                loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).double().eval()
            difference = _distance(_outputs(loaded), expected)
            # Only for the message: which tensor that trains is not in the file.
            lost = _lost(model, saved)
            assert difference < ROUNDING * changed, (
                f"a saved adapter of a {kind} comes back other by {difference:.2g}: "
                + (f"its file lacks {lost[0]}" if lost else "a value is not restored")
                + ": what trains must be in the adapter's state dict, and nothing else may count"
            )


def merges_to_the_same(method: PeftMethod) -> None:
    """Merged into the weights it computes the same, alone and in a stack, or it refuses.

    Raises:
        AssertionError: if it computes something else, or a refused merge has changed the model.
    """
    for kind, base, config in _placements(method):
        for stack in (config, _stack(config, kind, maps=False)):
            model = _moved(base, stack)
            expected, changed = _outputs(model), _distance(_outputs(model), _outputs(base))
            try:
                model.merge_adapter()
            except (ValueError, NotImplementedError):
                difference = _distance(_outputs(model), expected)
                assert difference == 0, f"a merge that it refuses has changed the {kind}"
                continue
            _assert_near(model, expected, changed, f"merged into a {kind}")
            model.unmerge_adapter()
            _assert_near(model, expected, changed, f"merged into a {kind} and taken out again")
            _assert_near(model.merge_and_unload(), expected, changed, f"unloaded from a {kind}")


def heeds_its_scale(method: PeftMethod) -> None:
    """The settings of ``scaled_with`` scale what it adds, and it is divided by the size.

    Raises:
        AssertionError: if doubling the scale changes nothing, or the size is not divided out.
    """
    if method.size is None or not method.scaled_with:
        return
    for kind, base, config in _placements(method):
        once = _moved(base, config)
        expected, changed = _outputs(once), _distance(_outputs(once), _outputs(base))
        settings = {name: getattr(config, name) for name in method.size_settings}
        doubled = {name: 2 * value for name, value in settings.items()}
        scaled = {name: doubled[name] for name in method.scaled_with}
        twice = _with_weights(base, _changed(config, scaled), once)
        assert _distance(_outputs(twice), expected) > ROUNDING * changed, (
            f"{', '.join(scaled)} doubled changes nothing on a {kind}: forward does not heed it"
        )
        # What is new in a size that is twice as large is zero, so it adds the same.
        wide = _with_weights(base, _changed(config, doubled), once)
        assert _distance(_outputs(wide), expected) < ROUNDING * changed, (
            f"with {' and '.join(doubled)} doubled and zeros in what is new, it adds something "
            f"else to a {kind}: divide {method.scaled_with[0]} by {method.size}, or leave it out "
            "of scaled_with"
        )


def grows_with_its_size(method: PeftMethod) -> None:
    """Twice the size trains more parameters, so that a budget can choose it.

    Raises:
        AssertionError: if the larger one does not train more parameters.
    """
    if method.size is None:
        return
    for kind, base, config in _placements(method):
        size = getattr(config, method.size)
        is_count = isinstance(size, int) and size > 0
        assert is_count, f"{method.size}={size!r} is its size: give it a default above 0"
        small, large = (
            _trained(base, _changed(config, {method.size: n})) for n in (size, 2 * size)
        )
        assert large > small, (
            f"{method.size}={2 * size} trains {large:,} parameters on a {kind}, and {size} trains "
            f"{small:,}: name another setting as its size, or size=None"
        )


def runs_in_16_bits(method: PeftMethod) -> None:
    """On a base in bfloat16 it gives finite outputs of that dtype.

    Raises:
        AssertionError: if it fails, or gives another dtype or numbers that are not finite.
    """
    for kind, base, config in _placements(method):
        model = get_peft_model(copy.deepcopy(base).to(torch.bfloat16), config).eval()
        try:
            outputs = _outputs(model)
        except RuntimeError as error:  # torch refuses to mix dtypes
            raise AssertionError(
                f"a {kind} in bfloat16 fails ({str(error).splitlines()[0]}): give back the dtype "
                "of the layer's own outputs"
            ) from error
        assert outputs.dtype == torch.bfloat16, f"the outputs of a {kind} are in {outputs.dtype}"
        assert outputs.isfinite().all(), f"the outputs of a {kind} in bfloat16 are not finite"


CHECKS: dict[str, Callable[[PeftMethod], None]] = {
    check.__name__: check
    for check in (
        starts_at_the_base,
        trains_its_parameters_alone,
        switches_off,
        comes_back_from_its_file,
        merges_to_the_same,
        heeds_its_scale,
        grows_with_its_size,
        runs_in_16_bits,
    )
}


def _placements(method: PeftMethod) -> Iterator[tuple[str, PreTrainedModel, PeftConfig]]:
    """Each kind of model, a new one of it, and the method's config for it."""
    for kind, (model_class, model_config) in MODELS.items():
        torch.manual_seed(0)
        base = model_class(copy.deepcopy(model_config)).double().eval()
        chosen = choose_settings(as_method(method, method.part), base.config)
        settings = settings_for(chosen, {}, base.config)[method.part]
        yield kind, base, method.config(**settings)


def _stack(config: PeftConfig, kind: str, *, maps: bool = True) -> LoradaConfig:
    """The method between LoRA on the same matrices and a map."""
    targets = ["q_proj", "v_proj"] if kind == "LLaMA" else ["query", "value"]
    parts: list[PeftConfig] = [LoraConfig(r=2, target_modules=targets), copy.deepcopy(config)]
    if maps:
        parts.append(LmamConfig(rank=2, length=6))
    return LoradaConfig(parts=parts)


def _inputs() -> dict[str, Tensor]:
    ids = torch.arange(24).reshape(3, 8) * 5 % 90 + 5
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**_inputs()).logits
    return logits


def _distance(outputs: Tensor, expected: Tensor) -> float:
    return float((outputs - expected).abs().max())


def _moved(base: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The base with an adapter whose parameters have moved, as after a training."""
    model: PeftModel = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(MOVED * torch.randn_like(parameter))
    return model


def _changed(config: PeftConfig, settings: dict[str, Any]) -> PeftConfig:
    changed = copy.deepcopy(config)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def _with_weights(base: PreTrainedModel, config: PeftConfig, source: PeftModel) -> PeftModel:
    """An adapter with the weights of another, in the first rows and columns if it is larger."""
    model: PeftModel = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).double().eval()
    weights = source.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            corner = tuple(map(slice, weights[name].shape))
            weight.zero_()[corner] = weights[name]
    return model


def _trained(base: PreTrainedModel, config: PeftConfig) -> int:
    model = get_peft_model(copy.deepcopy(base), config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _lost(model: PeftModel, saved: dict[str, Tensor]) -> list[str]:
    """The names of parameters that train and are not in the file of the adapter."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return [name for name in names if name.replace(".default", "") not in saved]


def _assert_near(model: nn.Module, expected: Tensor, changed: float, how: str) -> None:
    difference = _distance(_outputs(model), expected)
    assert difference < ROUNDING * changed, (
        f"{how} it computes something else by {difference:.2g}: mend merge, or let it raise a "
        "ValueError where the weights cannot hold what it computes"
    )
