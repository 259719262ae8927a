"""Loads base models and what was trained on them, and places a method on a base model.

An adapter has the recipe's ``pooling`` as a part. A fully trained model has no adapter, so one with
nothing but the pooling lies beside its weights; transformers places it when it loads that folder.
"""

import json
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorada.methods.build import Plan
from lorada.methods.head_modules import PEFT_NAMES, head_modules, in_head, select_trainable
from lorada.methods.lookup import method_named
from lorada.methods.method import TRAINING_SETTINGS, part_class
from lorada.runs.recipe import Recipe
from lorada.support.models import short_name
from lorada.support.task_head import TaskHead
from lorada.training.inputs import Prepared, loading_settings
from lorada.training.models.loading import (
    base_type_of,
    load_model,
    reading,
    refuse_other_type,
    stretched,
)
from lorada.tuners import LoradaConfig, PrefixConfig
from lorada.tuners.base.part_config import UNKNOWN_REMEDY, is_known
from lorada.tuners.pooling import CHILD, PoolingConfig, PoolingLayer, attach, backbone_of
from lorada.tuners.stack.nested_layers import keys_of_others
from lorada.tuners.stack.stack_config import as_stack

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNFIT = "it is damaged, or was saved for another architecture"


@dataclass(frozen=True)
class Base:
    """A model before a method is placed on it."""

    model: PreTrainedModel
    total: int  # N, the number of its parameters without its task head
    drawn: frozenset[str]  # names of parameters that its checkpoint lacks: drawn at random
    head: tuple[str, ...]  # names of the modules that are its task head


def load_base(
    prepared: Prepared,
    task_head: TaskHead | None = None,
    device: torch.device | None = None,
    *,
    without_adapter: bool = False,
) -> Base:
    """Load the weights of a recipe's base model, to a ``device`` or, if it is None, to the CPU.

    Args:
        prepared: the recipe with the base's config and tokenizer.
        task_head: None for a model that generates text.
        device: where the weights go.
        without_adapter: whether an adapter that lies beside the weights in the base's folder is
            left out, because the caller places it. A folder that holds one is refused otherwise.

    Raises:
        ValueError: for an incomplete or damaged checkpoint.
        OSError: if it can be neither read nor fetched.
    """
    recipe, config = prepared.recipe, prepared.config
    model, drawn = load_model(
        recipe.model,
        task_head,
        config=stretched(config, recipe.rope_factor),
        dtype=recipe.base_dtype,
        trust_remote_code=recipe.trust_remote_code,
        without_adapter=without_adapter,
        loading=loading_settings(recipe, device, headed=task_head is not None),
    )
    head = () if task_head is None else head_modules(model, drawn)
    # A decoder's head reads a row's last token before the pads, which it finds by the config's id.
    # An encoder's own id stays: some count positions from it.
    head_finds_pads = task_head is not None and prepared.kind != "encoder"
    for config_with_pad in (model.config, model.config.get_text_config()):
        if head_finds_pads or getattr(config_with_pad, "pad_token_id", None) is None:
            config_with_pad.pad_token_id = prepared.tokenizer.pad_token_id
    _refuse_unknown_tokens_when_met(model, prepared.tokenizer)
    return Base(model=model, total=base_parameters(model, head), drawn=drawn, head=head)


def _refuse_unknown_tokens_when_met(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Make a model raise an error when it meets a token that it has no embedding for.

    A tokenizer with more tokens is no error by itself: many have one that is never used, such as
    Gemma 3's token for images.
    """
    embeddings = model.get_input_embeddings()
    count = embeddings.weight.shape[0]
    if len(tokenizer) <= count:
        return

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise ValueError for a batch of ids (B, T) with one past the last embedding."""
        ids = args[0]
        largest = int(ids.max()) if isinstance(ids, torch.Tensor) and ids.numel() else 0
        if largest >= count:
            raise ValueError(
                f"the tokenizer has {tokenizer.convert_ids_to_tokens(largest)!r} as token "
                f"{largest}, but the model has embeddings for {count} tokens only: take the "
                "tokenizer that belongs to the model, or resize the model's embeddings"
            )

    # In place of torch's IndexError, which on a GPU is an assertion that names no token.
    embeddings.register_forward_pre_hook(check)


def adapt(base: Base, plan: Plan, recipe: Recipe) -> PeftModel | PreTrainedModel:
    """Place a method on a base model, ready to train.

    Raises:
        ValueError: if the method, ``--from`` or ``train_head=false`` does not go with the base.
    """
    model = _place(base, plan, recipe)
    if plan.freeze is not None:
        plan.freeze(model)
    if not recipe.train_head:
        if not base.head:
            raise ValueError("train_head=false: this task puts no head on a model: leave it out")
        for name, parameter in model.named_parameters():
            if in_head(name, base.head):
                parameter.requires_grad_(False)
    return model


def _place(base: Base, plan: Plan, recipe: Recipe) -> PeftModel | PreTrainedModel:
    """Place a plan's adapter on the base, new or from a saved one; without one, select what trains.

    A pooling becomes a part of the adapter, and the task's head is saved with it.

    Raises:
        ValueError: as ``adapt``.
    """
    if plan.config is None:
        return _select_in_base(base, plan, recipe)
    config = plan.config
    config.base_model_type = base.model.config.model_type
    if recipe.pooling is not None:
        config.parts = [*config.parts, PoolingConfig(pooling=recipe.pooling)]
    config.task_type = task_type(base.model.config, classifies=bool(base.head))
    if base.head:
        # By default PEFT trains and saves only heads with the name classifier or score.
        # In PEFT's terms: modules that are trained as a whole, and saved.
        config.modules_to_save = list(base.head)
    if recipe.from_adapter is None:
        return get_peft_model(base.model, config)
    return _start_from(base.model, config, recipe)


def _select_in_base(base: Base, plan: Plan, recipe: Recipe) -> PreTrainedModel:
    """Let parameters of the base itself train, as methods without an adapter do.

    Raises:
        ValueError: for ``--from``, as there is no adapter to start from.
    """
    if recipe.from_adapter is not None:
        raise ValueError(f"--from needs a method with an adapter, which {recipe.method} is not")
    assert plan.trainable is not None
    if recipe.pooling is not None:
        attach(base.model, recipe.pooling)
    select_trainable(base.model, plan.trainable, base.head, plan.with_head)
    return base.model


def task_type(model_config: Any, *, classifies: bool) -> str:
    """PEFT's task type of a model; ``classifies`` if it has a head for classes or scores."""
    if classifies:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model_config.is_encoder_decoder else "CAUSAL_LM"


def config_to_start(
    config: LoradaConfig, recipe: Recipe, model_config: Any
) -> tuple[LoradaConfig, set[Any]]:
    """The config of the adapter of ``--from`` with the parts that it lacks, and its own kinds.

    An adapter of another kind of base or another pooling, and settings for a part that it brings,
    are refused.

    The new parts come first in the config.

    Args:
        config: what a new adapter would be, with all parts of the method.
        recipe: with ``from_adapter``.
        model_config: of the base.

    Raises:
        ValueError: as said above, in one line that names the folder.
    """
    folder = Path(str(recipe.from_adapter))
    old = adapter_config(folder)
    refuse_other_type(base_type_of(old), folder, model_config)
    old_kinds = {part.peft_type for part in old.parts}
    if pooling_part(old) is not None:
        refuse_other(pooling_part(old), recipe.pooling, folder)
    for name, settings in recipe.parts.items():
        # How a part trains may change; what it is may not.
        fixed = [key for key in settings if key not in TRAINING_SETTINGS.get(name, {})]
        if fixed and any(isinstance(part, part_class(name)) for part in old.parts):
            raise ValueError(
                f"{folder} brings its own {name} part as it was trained: leave out the settings "
                f"{', '.join(f'{name}.{key}' for key in fixed)}"
            )
    new_parts = [part for part in config.parts if part.peft_type not in old_kinds]
    old.parts = [*new_parts, *old.parts]
    old.task_type = config.task_type
    old.inference_mode = False  # as which it was saved
    saved_modules = {*(config.modules_to_save or []), *(old.modules_to_save or [])}
    old.modules_to_save = sorted(saved_modules) or None
    old.base_model_name_or_path = None  # PEFT fills in that of the model it is placed on
    old.base_model_type = config.base_model_type
    return old, old_kinds


def _start_from(base: PreTrainedModel, config: LoradaConfig, recipe: Recipe) -> PeftModel:
    """Place the adapter of ``--from`` with its new parts, and load its weights; warnings say so.

    A saved adapter that lacks weights of its parts is refused.

    Raises:
        ValueError: if the saved adapter lacks weights of its parts, or does not belong on this
            base.
    """
    folder = Path(str(recipe.from_adapter))
    start_config, old_kinds = config_to_start(config, recipe, base.config)
    weights = adapter_weights(folder)
    with reading("the adapter", str(folder), UNFIT):
        model = get_peft_model(base, start_config)
        # The new parts have no saved weights, so only those of the old kinds must be there.
        _refuse_missing(model, weights, folder, old_kinds)
        set_peft_model_state_dict(model, weights)
    logger.warning("%d tensors taken over from %s", len(weights), folder)
    logger.warning("%s", trained_parts(start_config, old_kinds, recipe))
    return model


def trained_parts(config: LoradaConfig, old_kinds: Collection[Any], recipe: Recipe) -> str:
    """What a training trains that starts from an adapter with ``old_kinds`` of parts, in words."""
    method_classes = tuple(part_class(name) for name in method_named(recipe.method).part_names)
    old: list[str] = []
    new: list[str] = []
    foreign: list[str] = []  # those that the method alone does not have
    for part in config.parts:
        name = _type_name(part)
        if part.peft_type in old_kinds:
            old.append(name)
        else:
            new.append(name)
        # A pooling is no part of any method, but of the recipe.
        if not isinstance(part, (*method_classes, PoolingConfig)):
            foreign.append(name)
    sentence = f"this trains {' and '.join(old)} from {recipe.from_adapter}"
    if new:
        sentence += f", and new {' and '.join(new)} beside it"
    if foreign:
        sentence += f": method={recipe.method} alone has no {' and no '.join(foreign)}"
    return sentence


def _type_name(part: Any) -> str:
    """The PEFT type of a part: PEFT's own are members of an enum, those of lorada texts."""
    return str(getattr(part.peft_type, "value", part.peft_type))


def _refuse_missing(
    model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, kinds: set[Any] | None = None
) -> None:
    """Refuse saved weights that lack tensors of these kinds of parts; None for all kinds."""
    # With save_embedding_layers, PEFT would read the base's config to see if its vocabulary grew.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = expected.keys() - weights.keys()
    if kinds is not None:
        tuners = [PEFT_TYPE_TO_TUNER_MAPPING[kind] for kind in kinds]
        # A tensor may be missing if it is of none of these kinds.
        of_others = [keys_of_others(model, tuner, missing) for tuner in tuners]
        missing -= set.intersection(*of_others)
    if missing:
        raise ValueError(
            f"{folder} has no {min(missing)}: it is incomplete, or was saved for another "
            "architecture"
        )


def adapter_config(folder: Path) -> LoradaConfig:
    """The config of a saved adapter; one of PEFT is read as a stack of one part.

    A folder that is no adapter, and a kind that neither PEFT nor lorada knows, are refused.

    Raises:
        ValueError: for a folder that holds no adapter, or one of a kind that neither PEFT nor
            lorada knows.
    """
    if not folder.is_dir():
        raise ValueError(f"no adapter folder at {folder}")
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        inner_folder = folder / "adapter"  # of a run
        hint = f"its adapter is {inner_folder}" if inner_folder.is_dir() else "not a PEFT adapter"
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}: {hint}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if not is_known(kind):
        raise ValueError(
            f"{path} has peft_type={kind!r}, which neither peft nor lorada knows; {UNKNOWN_REMEDY}"
        )
    with reading("the adapter", str(folder), UNFIT):
        return as_stack(folder)


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter.

    A pickle, and a file that is damaged or empty, is refused.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickles = ", ".join(pickle.name for pickle in folder.glob("*.bin"))
        reason = f"; {pickles} is a pickle, which lorada does not load" if pickles else ""
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}{reason}")
    with reading("the tensors", str(folder)):
        weights: dict[str, torch.Tensor] = load_file(path)
    if not weights:
        raise ValueError(f"{path} holds no tensors")
    return weights


def load_adapted(base: PreTrainedModel, folder: Path, drawn: Collection[str] = ()) -> PeftModel:
    """A model with the saved adapter in ``folder``, for inference; ``drawn`` is as in ``Base``.

    Raises:
        ValueError: for an adapter that is incomplete or belongs to another base.
    """
    config, weights = _read_adapter(folder, base, drawn)
    with reading("the adapter", str(folder), UNFIT):
        model = PeftModel.from_pretrained(base, str(folder), config=config)
        _refuse_missing(model, weights, folder)
    return model.eval()


def _read_adapter(
    folder: Path, base: PreTrainedModel, drawn: Collection[str]
) -> tuple[LoradaConfig, dict[str, torch.Tensor]]:
    """Config and tensors of a saved adapter of this base; refuses one without what was drawn.

    Raises:
        ValueError: also if it was trained on another type of model.
    """
    config, weights = adapter_config(folder), adapter_weights(folder)
    refuse_other_type(base_type_of(config), folder, base.config)
    base_name = config.base_model_name_or_path
    if base_name is not None and short_name(base_name) is not None:
        # PEFT would look on the hub for a packaged base, which is here.
        config.base_model_name_or_path = base.name_or_path
    saved_names = {name.removeprefix(PEFT_NAMES) for name in weights}
    missing = set(drawn) - saved_names
    if missing:
        raise ValueError(
            f"{folder} has no {min(missing)}, nor has its model's checkpoint, so each load would "
            "draw another at random: train again"
        )
    return config, weights


def fold_prefixes(model: PeftModel) -> None:
    """Replace each network that makes a prefix while training by the prefix it makes."""
    for part in model.peft_config["default"].parts:
        if isinstance(part, PrefixConfig) and part.projection is not None:
            model.fold()


def base_parameters(base: PreTrainedModel, head: Collection[str] = ()) -> int:
    """N: the parameters of a model before a method is placed on it, without its task head."""
    in_heads = sum(p.numel() for name, p in base.named_parameters() if in_head(name, head))
    return int(base.num_parameters() - in_heads)


def parameter_counts(
    model: nn.Module, total: int, head: Collection[str] = (), with_head: str | None = None
) -> dict[str, Any]:
    """How many parameters a model with a method trains, against the ``total`` (N) of its base.

    The task head's modules ``head`` do not count, nor do names that match the regular expression
    ``with_head``. ``percent_of_all`` is of the base with the adapter, PEFT's own convention.

    Args:
        model: with the method placed on it.
        total: N.
        head: names of the modules of the task head.
        with_head: a regular expression for names that are counted as the head's.
    """
    trainable = 0
    for name, parameter in model.named_parameters():
        is_of_head = in_head(name, head)
        if with_head is not None and re.search(with_head, name):
            is_of_head = True
        if parameter.requires_grad and not is_of_head:
            trainable += parameter.numel()
    added = trainable if isinstance(model, PeftModel) else 0
    return {
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "percent_of_all": 100 * trainable / (total + added),
    }


# ``base_model_name_or_path`` of an adapter that lies beside its base. From a local folder
# transformers loads the base beside it; from the hub, the one that is named here. No name fits: the
# folder may be moved, and no other folder has these weights.
BESIDE = "the base is beside this adapter: load a local copy of the folder"


def pooling_part(config: LoradaConfig) -> str | None:
    """The pooling among the parts of an adapter; None if it has none."""
    for part in config.parts:
        if isinstance(part, PoolingConfig):
            return part.pooling
    return None


def refuse_other(saved: str | None, in_recipe: str | None, folder: Path) -> None:
    """Refuse saved weights whose head read by another pooling than the recipe says."""
    if saved == in_recipe:
        return
    trained_with = "none" if saved is None else f"pooling={saved}"
    recipe_has = "no pooling" if in_recipe is None else f"pooling={in_recipe}"
    raise ValueError(f"{folder} was trained with {trained_with}, and the recipe has {recipe_has}")


def pooling_of(model: nn.Module) -> str | None:
    """The pooling that ``attach`` has put on a fully trained model; None for any other model."""
    if not isinstance(model, PreTrainedModel):
        return None
    # ``attach`` places a PoolingLayer as a child of the model's body, under this name.
    layer = getattr(backbone_of(model), CHILD, None)
    return layer.configs["default"].pooling if isinstance(layer, PoolingLayer) else None


def part_kinds(model: nn.Module) -> list[str]:
    """The PEFT types of the parts in a model's adapter; empty for a model without one."""
    if isinstance(model, PeftModel):
        return [_type_name(part) for part in model.peft_config["default"].parts]
    return [] if pooling_of(model) is None else [PoolingConfig.registered_as.value]


def save_pooling_beside(model: nn.Module, folder: Path) -> None:
    """Write the pooling of a fully trained model, if it has one, as an adapter without tensors."""
    pooling = pooling_of(model)
    if pooling is None:
        return
    config = LoradaConfig(
        parts=[PoolingConfig(pooling=pooling)],  # type: ignore[arg-type]
        base_model_name_or_path=BESIDE,
        base_model_type=str(model.config.model_type),  # type: ignore[union-attr]
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file({}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
