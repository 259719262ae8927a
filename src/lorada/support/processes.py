"""Helpers for several processes that train one model (``torchrun``, ``accelerate launch``).

All processes train; only the main one, the first, decides, writes and prints. An error in one ends
all of them.
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
    if "LOCAL_RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
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
    """Connect the processes of this launch, if there are several; only the first then shows bars.

    It reads ``use_cpu``, ``ddp_timeout`` and ``ddp_backend`` of the TrainingArguments ``settings``.

    Processes that cannot be joined are refused.
    """
    from accelerate import PartialState

    # Creating accelerate's shared state is what connects the processes.
    PartialState(
        cpu=bool(settings.get("use_cpu")) or only_cpu(),
        backend=settings.get("ddp_backend"),
        timeout=timedelta(seconds=float(settings.get("ddp_timeout", 1800))),
    )
    if process_count() > 1 and _works_alone():
        raise ValueError(
            f"{process_count()} processes were started, and accelerate has not joined them"
        )
    if not is_main_process():
        hide_bars()


def hide_bars() -> None:
    """Show no progress bars of other libraries from now on in this process."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def leave_processes() -> None:
    """Disconnect from the other processes, at the end of a command."""
    if not _works_alone():
        import torch.distributed as dist

        dist.destroy_process_group()


def _works_alone() -> bool:
    """Whether there is one process only, or it is not connected to others."""
    if process_count() == 1:
        return True
    import torch.distributed as dist

    return not dist.is_initialized()


# A mark on an error that every process of the launch has heard of.
KNOWN_TO_ALL = "lorada_known"


@contextmanager
def all_or_none() -> Iterator[None]:
    """Run a step in all processes; at its end each knows whether it succeeded in all of them.

    Steps may be nested. Inside a step no other collective operation may be used, as a process that
    has failed would not take part in it. The first in order that failed raises its own error, all
    others ``OtherProcessError``.
    """
    own_error: Exception | None = None
    try:
        yield
    except Exception as error:
        # Alone there is nobody to tell; an error of a nested step is known to all already.
        if _works_alone() or KNOWN_TO_ALL in error.__dict__:
            raise
        own_error = error
    own_reason = None if own_error is None else f"{type(own_error).__name__}: {own_error}"
    reasons = all_gather(own_reason)
    failed_ranks = [rank for rank, reason in enumerate(reasons) if reason is not None]
    if not failed_ranks:
        return
    first_failed = failed_ranks[0]
    if own_error is not None and int(os.environ["RANK"]) == first_failed:
        own_error.__dict__[KNOWN_TO_ALL] = True
        raise own_error
    error_elsewhere = OtherProcessError(f"process {first_failed} failed: {reasons[first_failed]}")
    error_elsewhere.__dict__[KNOWN_TO_ALL] = True
    raise error_elsewhere from own_error


def broadcast_from_main(compute: Callable[[], Value]) -> Value:
    """Compute a value in the main process and send it to all others.

    An error of the main process ends all of them, as in ``all_or_none``.
    """
    own_value: Any = None
    with all_or_none():
        if is_main_process() or _works_alone():
            own_value = compute()
    main_value: Value = all_gather(own_value)[0]
    return main_value


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, in their order."""
    if _works_alone():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value)
    return values


def in_any_process(flag: bool, device: Any) -> bool:
    """Whether a flag is set in any process; ``device`` is the one that collectives use."""
    if _works_alone():
        return flag
    import torch
    import torch.distributed as dist

    # The largest of zeros and ones is a one if any process has set it.
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)
