"""AutoPEFT's search for configurations that no other beats in accuracy and size."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorada.methods.autopeft.botorch_sampler import BotorchSampler
from lorada.methods.autopeft.search_space import Sampler, Space, Trial, random_sampler
from lorada.methods.autopeft.settings import Configuration
from lorada.support.errors import unknown_name
from lorada.support.files import json_text, write_atomic


def sampler_named(name: str) -> Sampler:
    """Look up a sampler: ``random`` or ``botorch``.

    Raises:
        ValueError: for another name.
        ImportError: for ``botorch`` where its packages are not installed.
    """
    if name == "random":
        return random_sampler
    if name == "botorch":
        return BotorchSampler()
    raise unknown_name("sampler", name, ("random", "botorch"))


def search(
    evaluate: Callable[[int, Configuration], tuple[float, float]],
    space: Space,
    trials: int,
    sampler: str | Sampler = "random",
    state_file: Path | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Try configurations and record their results; an interrupted search continues.

    Args:
        evaluate: trains and scores a configuration, given the number of its trial from 0 on;
            returns accuracy and parameters, both in percent.
        space: the configurations to choose from.
        trials: how many configurations to try, those recorded in ``state_file`` included.
        sampler: a name of ``sampler_named``, or a function.
        state_file: a JSON file that is written before and after each trial; if it exists, the
            search continues from it.
        seed: of the sampler.

    Raises:
        ValueError: for ``trials`` out of range, or a state file of another search.
    """
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1")
    if trials > space.size():
        raise ValueError(
            f"trials={trials} is more than the {space.size()} configurations there are"
        )
    propose = sampler_named(sampler) if isinstance(sampler, str) else sampler
    about = _about(space, sampler, seed)
    done, proposed = _read(state_file, about)
    while len(done) < trials:
        proposed = proposed or propose(space, done, seed)
        _write(state_file, about, done, proposed)
        done.append(Trial(proposed[0], *evaluate(len(done), proposed[0])))
        proposed = proposed[1:]
        _write(state_file, about, done, proposed)
    return done[:trials]


def recorded(space: Space, sampler: str | Sampler, state_file: Path, seed: int) -> list[Trial]:
    """The trials that a search has recorded; the arguments are those of ``search``.

    Raises:
        ValueError: for a state file of another search.
    """
    return _read(state_file, _about(space, sampler, seed))[0]


def _about(space: Space, sampler: str | Sampler, seed: int) -> dict[str, Any]:
    name = sampler if isinstance(sampler, str) else type(sampler).__name__
    return {"space": {**asdict(space), "parts": list(space.parts)}, "sampler": name, "seed": seed}


def _write(
    path: Path | None, about: dict[str, Any], done: list[Trial], proposed: list[Configuration]
) -> None:
    if path is not None:
        state = {
            **about,
            "trials": [asdict(t) for t in done],
            "next": [asdict(c) for c in proposed],
        }
        write_atomic(path, json_text(state) + "\n")


def _read(path: Path | None, about: dict[str, Any]) -> tuple[list[Trial], list[Configuration]]:
    if path is None or not path.is_file():
        return [], []
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        before = {key: state[key] for key in about}
        done = [
            Trial(**{**trial, "configuration": _configuration(trial["configuration"])})
            for trial in state["trials"]
        ]
        proposed = [_configuration(values) for values in state["next"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the state of a search: {error}") from error
    for key, value in about.items():
        if before[key] != value:
            raise ValueError(
                f"the search in {path} had {key}={before[key]!r}, not {value!r}: "
                "keep it, or search in another folder"
            )
    return done, proposed


def _configuration(values: dict[str, Any]) -> Configuration:
    return Configuration(**{**values, "layers": tuple(values["layers"])})
