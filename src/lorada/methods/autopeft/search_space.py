"""AutoPEFT: three blocks, how large each is, and in which layers; by hand or by a search.

    y = FFN(x), z = LN(y + x):    LN(A_s(z) + y + A_p(x) + x),    and a prefix in the attention

Zhou et al., "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning" (2024).
A_s is the serial adapter (part ``bottleneck``), A_p the parallel one (``parallel_ffn``). Each size
is d / 2^i with i = 0…9, or 0: no such block. One bit a layer switches all three. The search looks
for the configurations that no other beats in both accuracy and number of parameters. Its default
draws them at random; ``autopeft_botorch`` has the published sampler.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorada.methods.autopeft.block_settings import SIZES, configuration
from lorada.methods.callbacks.layers import generator_at
from lorada.support.errors import unknown
from lorada.support.files import json_text, write_whole

HALVINGS = 10  # d / 2^0 … d / 2^9


@dataclass(frozen=True)
class Configuration:
    """Sizes of the blocks, 0 for one that is absent, and the layers that have them."""

    serial: int
    parallel: int
    prefix: int
    layers: tuple[int, ...]

    def overrides(self) -> dict[str, dict[str, Any]]:
        """The settings that make the method this configuration."""
        return configuration(self.serial, self.parallel, self.prefix, self.layers)


Point = tuple[int, ...]  # a configuration by the numbers of its choices


@dataclass(frozen=True)
class Space:
    """What can be chosen for one model.

    Attributes:
        width: d, the hidden width of the model.
        depth: how many layers a bit switches.
        parts: the parts of ``SIZES`` that the model has a form of; others are always absent.
    """

    width: int
    depth: int
    parts: tuple[str, ...] = tuple(SIZES)

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """The values of each coordinate: sizes from the largest on, and 0 last; then off and on."""
        halved = dict.fromkeys(max(1, self.width >> i) for i in range(HALVINGS))
        sizes = [(*halved, 0) if part in self.parts else (0,) for part in SIZES]
        return (*sizes, *((0, 1),) * self.depth)

    def size(self) -> int:
        """The number of valid configurations."""
        of_blocks = math.prod(len(values) for values in self.choices[: len(SIZES)])
        of_layers: int = 2**self.depth
        return (of_blocks - 1) * (of_layers - 1)

    def at(self, point: Point) -> Configuration:
        """The configuration of a point."""
        values = [choice[i] for choice, i in zip(self.choices, point, strict=True)]
        serial, parallel, prefix, *bits = values
        return Configuration(serial, parallel, prefix, tuple(i for i, on in enumerate(bits) if on))

    def point(self, chosen: Configuration) -> Point:
        """The point of a configuration of this space."""
        bits = [int(layer in chosen.layers) for layer in range(self.depth)]
        values = (chosen.serial, chosen.parallel, chosen.prefix, *bits)
        return tuple(c.index(value) for c, value in zip(self.choices, values, strict=True))

    def valid(self, point: Point) -> bool:
        """Whether at least one block and one layer are left."""
        chosen = self.at(point)
        return bool(chosen.layers) and any((chosen.serial, chosen.parallel, chosen.prefix))

    def neighbours(self, point: Point) -> list[Point]:
        """The valid points one step away: one size larger or smaller, or one layer on or off."""
        found = []
        for place, values in enumerate(self.choices):
            for step in (point[place] - 1, point[place] + 1):
                if 0 <= step < len(values):
                    found.append((*point[:place], step, *point[place + 1 :]))
        return [near for near in found if self.valid(near)]

    def draw(self, generator: torch.Generator) -> Point:
        """A point, each valid one as likely as any other."""
        while True:
            drawn = (torch.randint(len(c), (), generator=generator) for c in self.choices)
            point = tuple(map(int, drawn))
            if self.valid(point):
                return point


@dataclass(frozen=True)
class Trial:
    """A configuration and what came of it.

    Attributes:
        configuration: what was tried.
        accuracy: of the trained model on held-out rows, in percent.
        parameters: what was trained, in percent of the model.
    """

    configuration: Configuration
    accuracy: float
    parameters: float


# Proposes the next configurations, given the space, the trials so far and a seed. It must propose
# the same again for the same three, so that a search can be resumed.
Sampler = Callable[[Space, list[Trial], int], list[Configuration]]


def random_sampler(space: Space, trials: list[Trial], seed: int) -> list[Configuration]:
    """One configuration that was not tried yet, each as likely as any other."""
    tried = {space.point(trial.configuration) for trial in trials}
    generator = generator_at(seed, len(trials))
    while True:
        point = space.draw(generator)
        if point not in tried:
            return [space.at(point)]


def sampler_named(name: str) -> Sampler:
    """``random`` or ``botorch``.

    Raises:
        ValueError: for another name.
        ImportError: for ``botorch`` where its packages are not installed.
    """
    if name == "random":
        return random_sampler
    if name == "botorch":
        from lorada.methods.autopeft.botorch_sampler import BotorchSampler

        return BotorchSampler()
    raise unknown("sampler", name, ("random", "botorch"))


def pareto(trials: list[Trial]) -> list[Trial]:
    """The trials that no other beats, the one with the fewest parameters first.

    One beats another that is as accurate or less with as many parameters or more, but for equals.
    """
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.parameters, -t.accuracy)):
        last = kept[-1] if kept else None
        same = last and (last.parameters, last.accuracy) == (trial.parameters, trial.accuracy)
        if last is None or same or trial.accuracy > last.accuracy:
            kept.append(trial)
    return kept


def search(
    evaluate: Callable[[int, Configuration], tuple[float, float]],
    space: Space,
    trials: int,
    sampler: str | Sampler = "random",
    state_file: Path | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Try configurations and keep what came of them; a search that was ended goes on.

    Args:
        evaluate: trains and scores a configuration, given the number of its trial from 0 on;
            returns accuracy and parameters, both in percent.
        space: what there is to choose from.
        trials: how many configurations are tried, those of a search that goes on included.
        sampler: a name of ``sampler_named``, or a function.
        state_file: a JSON file, written whole before and after each trial; if it is there, the
            search goes on from it.
        seed: of the sampler.

    Raises:
        ValueError: for numbers that make no search, or a state file of another search.
    """
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1")
    if trials > space.size():
        raise ValueError(
            f"trials={trials} is more than the {space.size()} configurations there are"
        )
    propose = sampler_named(sampler) if isinstance(sampler, str) else sampler
    name = sampler if isinstance(sampler, str) else type(sampler).__name__
    about = {"space": {**asdict(space), "parts": list(space.parts)}, "sampler": name, "seed": seed}
    done, proposed = _read(state_file, about)
    while len(done) < trials:
        proposed = proposed or propose(space, done, seed)
        _write(state_file, about, done, proposed)
        done.append(Trial(proposed[0], *evaluate(len(done), proposed[0])))
        proposed = proposed[1:]
        _write(state_file, about, done, proposed)
    return done[:trials]


def _write(
    path: Path | None, about: dict[str, Any], done: list[Trial], proposed: list[Configuration]
) -> None:
    if path is not None:
        state = {
            **about,
            "trials": [asdict(t) for t in done],
            "next": [asdict(c) for c in proposed],
        }
        write_whole(path, json_text(state) + "\n")


def _read(path: Path | None, about: dict[str, Any]) -> tuple[list[Trial], list[Configuration]]:
    if path is None or not path.is_file():
        return [], []
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        before = {key: state[key] for key in about}
        done = [Trial(**{**t, "configuration": _configuration(t)}) for t in state["trials"]]
        proposed = [_configuration({"configuration": c}) for c in state["next"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the state of a search: {error}") from error
    for key, value in about.items():
        if before[key] != value:
            raise ValueError(
                f"the search in {path} had {key}={before[key]!r}, not {value!r}: "
                "leave it as it was, or start again elsewhere"
            )
    return done, proposed


def _configuration(trial: dict[str, Any]) -> Configuration:
    values = trial["configuration"]
    return Configuration(**{**values, "layers": tuple(values["layers"])})
