"""Several processes that train one model: which is the first, and how all come to the same end.

``torchrun`` and ``accelerate launch`` start one command several times. All processes train; the
first alone decides, writes and speaks. An error ends all of them, and is told once.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

PATIENCE = 30.0  # seconds that the first process has to end a launch by an error that all meet


class OtherProcessError(Exception):
    """Another process of this launch failed, and tells why."""


def count() -> int:
    """How many processes this one trains with, itself included."""
    # A launcher says both; machines of a cluster may be told a WORLD_SIZE that is not of processes.
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def first() -> bool:
    """Whether this process decides, writes and speaks; one that is alone does."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def refuse_many(what: str) -> None:
    """Refuse a command that is for one process.

    Raises:
        ValueError: in a launch of several processes.
    """
    if count() > 1:
        raise ValueError(
            f"{what} is for one process, and {count()} were started: leave out torchrun or "
            "accelerate launch"
        )


def without_accelerator() -> bool:
    """Whether several processes have only the CPU, which accelerate must be told."""
    import torch

    return count() > 1 and not torch.accelerator.is_available()


def join(settings: Mapping[str, Any]) -> None:
    """Make the processes of this launch known to each other; one that is alone stays so.

    Args:
        settings: of TrainingArguments, some of which say how processes speak to each other.
    """
    from accelerate import PartialState

    cpu = bool(settings.get("use_cpu")) or without_accelerator()
    seconds = float(settings.get("ddp_timeout", 1800))
    PartialState(cpu=cpu, backend=settings.get("ddp_backend"), timeout=timedelta(seconds=seconds))
    if count() > 1 and _alone():
        raise ValueError(f"{count()} processes were started, and accelerate has not joined them")
    if not first():
        import datasets
        import transformers

        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def leave() -> None:
    """Part from the other processes, at the end of a command."""
    if not _alone():
        import torch.distributed as dist

        dist.destroy_process_group()


def _alone() -> bool:
    """Whether there are no other processes, or none that this one has been joined with."""
    if count() == 1:
        return True
    import torch.distributed as dist

    return not dist.is_initialized()


@contextmanager
def together() -> Iterator[None]:
    """A step that all processes come to, at whose end each learns whether all have done it.

    Within it processes may meet in other such steps, but not in anything else that waits for all:
    one that has failed does not come.

    Raises:
        Exception: what ended the step in this process, if no earlier one has failed.
        OtherProcessError: if one has.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as failed:
        if _alone() or _is_known(failed):
            raise
        error = failed
    if _alone():
        return
    said = gathered(None if error is None else f"{type(error).__name__}: {error}")
    speakers = [number for number, text in enumerate(said) if text is not None]
    if not speakers:
        return
    mine = error is not None and int(os.environ["RANK"]) == speakers[0]
    ending = error if error is not None and mine else _other(speakers[0], said[speakers[0]])
    ending.__dict__["lorada_known"] = True
    raise ending from (None if mine else error)


def _other(number: int, text: Any) -> OtherProcessError:
    return OtherProcessError(f"process {number} failed: {text}")


def _is_known(error: Exception) -> bool:
    """Whether all processes know of an error, so that nobody waits for this one any more."""
    return "lorada_known" in error.__dict__


@contextmanager
def told_once() -> Iterator[None]:
    """Let only the first process that fails keep its error: those of others come from it.

    Raises:
        OtherProcessError: in the others.
    """
    try:
        yield
    except Exception as error:
        if count() == 1 or _is_known(error) or _failed_first():
            raise
        raise OtherProcessError("another process failed before") from error


def _failed_first() -> bool:
    """Whether no process has failed before this one."""
    import torch.distributed as dist

    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's, from the start
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store: Any = dist.TCPStore(  # type: ignore[attr-defined]
                address, port, is_master=False, wait_for_workers=False
            )
        else:
            store = dist.distributed_c10d._get_default_store()
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(store.add(f"lorada/failed/{again}", 1)) == 1
    except RuntimeError:  # the process that kept the count is gone
        return False
    except ValueError:  # the processes had not met yet: the first has its time to tell
        time.sleep(0 if first() else PATIENCE)
        return True


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all of them; the others wait for it.

    Raises:
        Exception: what ``make`` raises, in the first.
        OtherProcessError: in the others.
    """
    made: list[Any] = [None]
    with together():
        if first() or _alone():
            made = [make()]
    if not _alone():
        import torch.distributed as dist

        dist.broadcast_object_list(made, src=0)
    value: Value = made[0]
    return value


def gathered(value: Value) -> list[Value]:
    """A value of each process, in their order."""
    if _alone():
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def anywhere(here: bool, device: Any) -> bool:
    """Whether something is so in any process; on a device that the processes share tensors by."""
    if _alone():
        return here
    import torch
    import torch.distributed as dist

    told = torch.tensor(int(here), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)
