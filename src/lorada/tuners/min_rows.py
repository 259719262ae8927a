"""``min_rows`` of a map: it leaves out the positions that too few training rows had."""

from typing import Any

import torch
from torch import Tensor

from lorada.functional.maps import position_embedding
from lorada.functional.precision import wide
from lorada.tuners.base.config import require_count


def check_rows(config: Any) -> None:
    """Check the fields ``min_rows`` and ``rows_by_position`` of a map's config.

    Raises:
        ValueError: for a map in which a zero is not nothing, or counts of another length.
    """
    if config.min_rows:
        require_count(config, "min_rows")
        if config.ablation not in (None, "no_position"):
            raise ValueError(
                f"min_rows={config.min_rows} has no meaning for ablation={config.ablation!r}: "
                "leave it out"
            )
    counts = config.rows_by_position
    if counts is not None and len(counts) != config.length:
        raise ValueError(
            f"rows_by_position has {len(counts)} positions and the map {config.length}: train "
            "again, or give length"
        )


def well_trained(config: Any, pe: Tensor | None, w_a: Tensor, w_b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (S, N, R) and (S, R, N) of a map that is zero where too few rows were.

    ``pe`` is PE (N,), if it was computed before.

    Raises:
        ValueError: if no rows were counted.
    """
    if config.rows_by_position is None:
        raise ValueError(
            f"min_rows={config.min_rows} needs the rows that `lorada train` counts "
            "(rows_by_position): leave it out, or give both"
        )
    keep = torch.tensor(config.rows_by_position, device=w_a.device) >= config.min_rows
    w_a, w_b = wide(w_a), wide(w_b)  # as PE is added, so that both cancel
    nothing = w_a.new_zeros(config.length)
    if config.ablation != "no_position":  # what the map adds to them later
        nothing = -(position_embedding(config.length, w_a) if pe is None else pe)
    return torch.where(keep[:, None], w_a, nothing[:, None]), torch.where(keep, w_b, nothing)
