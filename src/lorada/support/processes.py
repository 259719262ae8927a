"""Helpers for several processes that train one model (``torchrun``, ``accelerate launch``).

All processes train; only the first decides, writes and prints. An error in one ends all of them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

# The share of its accelerator's memory that a job may plan with, which whoever starts it sets.
GPU_SHARE = "LORADA_GPU_SHARE"


def gpu_share() -> float:
    """The share of an accelerator's memory that is for this process; 1 if nothing says less."""
    return float(os.environ.get(GPU_SHARE, "1"))


class OtherProcessError(Exception):
    """Another process of this launch failed; it prints the reason."""


def process_count() -> int:
    """The number of processes of this launch."""
    # Launchers set both. Some clusters set WORLD_SIZE alone, to a number of machines.
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process decides, writes and prints; True for a single process."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def refuse_several(what: str) -> None:
    """Refuse to run a command in several processes."""
    if process_count() > 1:
        raise ValueError(
            f"{what} is for one process, and {process_count()} were started: leave out torchrun or "
            "accelerate launch"
        )


def only_cpu() -> bool:
    """Whether several processes share a CPU, which accelerate does not see by itself."""
    import torch

    return process_count() > 1 and not torch.accelerator.is_available()


def join_processes(settings: Mapping[str, Any]) -> None:
    """Connect the processes of this launch, if there are several.

    It reads ``use_cpu``, ``ddp_timeout`` and ``ddp_backend`` of the TrainingArguments ``settings``.
    """
    from accelerate import PartialState

    cpu = bool(settings.get("use_cpu")) or only_cpu()
    seconds = float(settings.get("ddp_timeout", 1800))
    PartialState(cpu=cpu, backend=settings.get("ddp_backend"), timeout=timedelta(seconds=seconds))
    if process_count() > 1 and _alone():
        raise ValueError(
            f"{process_count()} processes were started, and accelerate has not joined them"
        )
    if not is_first():
        hide_bars()


def hide_bars() -> None:
    """Show no progress bars of other libraries from now on in this process."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def leave_processes() -> None:
    """Disconnect from the other processes, at the end of a command."""
    if not _alone():
        import torch.distributed as dist

        dist.destroy_process_group()


def _alone() -> bool:
    """Whether there is one process only, or it is not connected to others."""
    if process_count() == 1:
        return True
    import torch.distributed as dist

    return not dist.is_initialized()


@contextmanager
def all_or_none() -> Iterator[None]:
    """Run a step in all processes; at its end each knows whether it succeeded in all of them.

    Steps may be nested. Inside a step no other collective operation may be used, as a process that
    has failed would not take part in it. The first in order that failed raises its own error, all
    others ``OtherProcessError``.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as failed:
        if _alone() or "lorada_known" in failed.__dict__:  # all processes know of it
            raise
        error = failed
    reasons = gather_values(None if error is None else f"{type(error).__name__}: {error}")
    first = next((number for number, reason in enumerate(reasons) if reason is not None), None)
    if first is None:
        return
    ending: Exception = OtherProcessError(f"process {first} failed: {reasons[first]}")
    if error is not None and int(os.environ["RANK"]) == first:
        ending = error
    ending.__dict__["lorada_known"] = True
    raise ending from (None if ending is error else error)


def made_by_first(make: Callable[[], Value]) -> Value:
    """Make a value in the first process and send it to all others; errors are ``all_or_none``'s."""
    value: Any = None
    with all_or_none():
        if is_first() or _alone():
            value = make()
    made: Value = gather_values(value)[0]
    return made


def gather_values(value: Value) -> list[Value]:
    """The values of all processes, in their order."""
    if _alone():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value)
    return values


def in_any_process(here: bool, device: Any) -> bool:
    """Whether a flag is set in any process; ``device`` is the one that collectives use."""
    if _alone():
        return here
    import torch
    import torch.distributed as dist

    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
