"""The forms of a map other than the paper's: their settings, their parameters and how these start.

    distance   t (h_s, W)                        zero
    content    b (h_s, d), c (h_s)               zero
    bilinear   A (h_s, d, r), B (h_s, r, d)      A is normal with variance 1/d, B is zero

So each map is zero at the start. d is the width of a head's queries and keys. What each form
computes: docs/forms.md and ``functional/distance.py``, ``functional/content.py``.
"""

import math
from dataclasses import fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lorada.attention.call import head_width
from lorada.attention.content_map import BilinearMap, ContentMap
from lorada.attention.distance_map import DistanceMap
from lorada.attention.form_map import FormMap
from lorada.attention.hooks import hooks_for
from lorada.tuners.base.config import require_choice, require_count

Form = Literal["position", "distance", "content", "bilinear"]
FORMS: tuple[Form, ...] = get_args(Form)

MAPS: dict[str, type[FormMap]] = {
    "distance": DistanceMap,
    "content": ContentMap,
    "bilinear": BilinearMap,
}
# Form → its parameters, in the order of the map's factors.
PARAMETERS = {
    "distance": ("lora_taps",),
    "content": ("lora_key_vector", "lora_constant"),
    "bilinear": ("lora_query_factor", "lora_key_factor"),
}
# Setting → the forms that have it. In any other form it must keep its default.
_ONLY_IN = {
    "rank": ("position", "bilinear"),
    "length": ("position",),
    "align": ("position",),
    "positions": ("position",),
    "ablation": ("position",),
    "init": ("position",),
    "taps": ("distance",),
}


def check_form(config: Any) -> None:
    """Check the settings of an ``LmamConfig`` that depend on its form.

    Raises:
        ValueError: for a setting that the form does not have, or an even number of taps.
    """
    require_choice(config, "form", FORMS)
    require_count(config, "taps")
    if config.taps % 2 == 0:
        raise ValueError(f"taps={config.taps} must be odd: use {config.taps + 1}")
    defaults = {field.name: field.default for field in fields(config)}
    for name, forms in _ONLY_IN.items():
        value = getattr(config, name)
        if config.form not in forms and value != defaults[name]:
            having = " or ".join(f"form={form!r}" for form in forms)
            raise ValueError(
                f"{name}={value!r} has no meaning for form={config.form!r}: leave it out, or use "
                f"{having}"
            )


def new_parameters(
    config: Any, heads: int, host: nn.Module, device: torch.device
) -> dict[str, nn.Parameter]:
    """The parameters of a new map, by the name of their container.

    Raises:
        ValueError: if the queries of the host cannot be reached and the form needs them.
    """
    hooks = hooks_for(host)
    if config.form == "bilinear" and hooks is not None and not hooks.has_query:
        raise ValueError(
            f"form='bilinear' needs the queries, and {type(host).__name__} computes attention "
            "itself and hands out its keys and values only: use form='content'"
        )
    width = 0 if config.form == "distance" else head_width(host)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "distance": ((heads, config.taps),),
        "content": ((heads, width), (heads,)),
        "bilinear": ((heads, width, config.rank), (heads, config.rank, width)),
    }
    made = {}
    for name, shape in zip(PARAMETERS[config.form], shapes[config.form], strict=True):
        weight = torch.zeros(shape, device=device)
        if not config.init_weights:
            weight.normal_()
        elif name == "lora_query_factor":
            weight.normal_(std=1 / math.sqrt(width))
        made[name] = nn.Parameter(weight)
    return made


def form_map(
    form: str, factors: tuple[Tensor, ...], inverse_scale: float, samples: Tensor | None
) -> FormMap:
    """The map of a call, from its parameters."""
    return MAPS[form](factors, inverse_scale, samples)
