"""The search space of AutoPEFT: the sizes of the parts and the layers that have them.

    y = FFN(x), z = LN(y + x):    LN(A_s(z) + y + A_p(x) + x),    and a prefix in the attention

Zhou et al., "AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning" (2024).
A_s is the serial adapter (part ``bottleneck``), A_p the parallel one (``parallel_ffn``). Each size
is d / 2^i with i = 0…9, or 0, which leaves the part out. One bit for each layer switches all three.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorada.methods.autopeft.settings import SIZES, Configuration
from lorada.methods.callbacks.sampling import generator_at

HALVINGS = 10  # d / 2^0 … d / 2^9

# A configuration as coordinates: the index of the chosen value in each entry of ``Space.choices``.
Point = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """All configurations for one model.

    Attributes:
        width: d, the hidden width of the model.
        depth: number of layers, one bit for each; encoder and decoder share the bits.
        parts: the parts of ``SIZES`` that exist for the model; the others always have size 0.
    """

    width: int
    depth: int
    parts: tuple[str, ...] = tuple(SIZES)

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """The values of each coordinate: sizes from large to small, then 0; off and on by layer."""
        halved = dict.fromkeys(max(1, self.width >> i) for i in range(HALVINGS))
        sizes = [(*halved, 0) if part in self.parts else (0,) for part in SIZES]
        return (*sizes, *((0, 1),) * self.depth)

    def size(self) -> int:
        """The number of valid configurations."""
        of_sizes = math.prod(len(values) for values in self.choices[: len(SIZES)])
        of_layers: int = 2**self.depth
        return (of_sizes - 1) * (of_layers - 1)

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
        """Whether at least one part and one layer are left."""
        chosen = self.at(point)
        return bool(chosen.layers) and any((chosen.serial, chosen.parallel, chosen.prefix))

    def neighbours(self, point: Point) -> list[Point]:
        """The valid points one step away: one size larger or smaller, or one layer on or off."""
        found = []
        for i, values in enumerate(self.choices):
            for step in (point[i] - 1, point[i] + 1):
                if 0 <= step < len(values):
                    found.append((*point[:i], step, *point[i + 1 :]))
        return [near for near in found if self.valid(near)]

    def draw(self, generator: torch.Generator) -> Point:
        """Draw a valid point, each with the same probability."""
        while True:
            drawn = (torch.randint(len(c), (), generator=generator) for c in self.choices)
            point = tuple(map(int, drawn))
            if self.valid(point):
                return point


@dataclass(frozen=True)
class Trial:
    """A configuration and its result.

    Attributes:
        configuration: what was tried.
        accuracy: of the trained model on held-out rows, in percent.
        parameters: trained parameters, in percent of the model's.
    """

    configuration: Configuration
    accuracy: float
    parameters: float


# Proposes the next configurations from the space, the trials so far and a seed. It must propose
# the same again for the same arguments, so that a search can be resumed.
Sampler = Callable[[Space, list[Trial], int], list[Configuration]]


def random_sampler(space: Space, trials: list[Trial], seed: int) -> list[Configuration]:
    """Propose one configuration that was not tried yet, each with the same probability."""
    tried = {space.point(trial.configuration) for trial in trials}
    generator = generator_at(seed, len(trials))
    while True:
        point = space.draw(generator)
        if point not in tried:
            return [space.at(point)]


def pareto(trials: list[Trial]) -> list[Trial]:
    """The Pareto set of the trials: those that no other beats, the fewest parameters first.

    A trial beats another if it is at least as good in accuracy and in parameters, and better in
    one of them.
    """
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.parameters, -t.accuracy)):
        last = kept[-1] if kept else None
        same = last and (last.parameters, last.accuracy) == (trial.parameters, trial.accuracy)
        if last is None or same or trial.accuracy > last.accuracy:
            kept.append(trial)
    return kept
