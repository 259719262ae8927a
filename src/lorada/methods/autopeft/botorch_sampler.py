"""AutoPEFT's published sampler: Bayesian optimisation of accuracy and parameters, with botorch.

The first configurations are random. Then each objective is modelled by a Gaussian process with a
sparsity prior on its length scales (SAAS, Eriksson & Jankowiak, 2021). It is fitted by NUTS to the
ranks of the values, turned into normal scores (the copula transform). The configurations of a batch
are chosen one after another: each is the best that a local search over neighbours finds by expected
improvement of the noisy hypervolume (Daulton et al., 2021). The defaults are those of the code of
Zhou et al. (2024).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorada.methods.autopeft.search_space import Point, Space, Trial, pareto, random_sampler
from lorada.methods.autopeft.settings import Configuration
from lorada.methods.callbacks.sampling import generator_at
from lorada.support.errors import how_to_install


@dataclass(frozen=True)
class BotorchSampler:
    """Proposes batches of configurations.

    Attributes:
        initial: random configurations before the first batch.
        batch: configurations in a batch.
        warmup: steps of NUTS before its samples.
        samples: of NUTS.
        thinning: keep one sample in this many.
        reference: the reference point of the hypervolume, accuracy and parameters in percent. Only
            a configuration that is better in both counts.
        evaluations: most points that are evaluated to choose one configuration.
        restarts: starts of the local search.
        draws: samples of the posterior that estimate the expected improvement.

    Raises:
        ImportError: if botorch or what its fully Bayesian models need is not installed.
    """

    initial: int = 100
    batch: int = 4
    warmup: int = 128
    samples: int = 64
    thinning: int = 4
    reference: tuple[float, float] = (70.0, 26.0)
    evaluations: int = 2000
    restarts: int = 10
    draws: int = 128

    def __post_init__(self) -> None:
        try:  # fail now instead of after the random trials
            import botorch  # noqa: F401
            import jax  # noqa: F401
            import numpyro  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"sampler 'botorch' needs {error.name}: {how_to_install('search')}, or take "
                "sampler 'random'"
            ) from error

    def __call__(self, space: Space, trials: list[Trial], seed: int) -> list[Configuration]:
        """Propose the next configurations, none of which was tried."""
        if len(trials) < self.initial:
            return random_sampler(space, trials, seed)
        generator = generator_at(seed, len(trials))
        inputs = torch.stack([_coordinates(space, space.point(t.configuration)) for t in trials])
        scores, reference = self._objectives(trials)
        model = self._fit(inputs, scores, seed)
        left = space.size() - len(trials)
        taken = {space.point(trial.configuration) for trial in trials}
        best = [space.point(trial.configuration) for trial in pareto(trials)]
        chosen: list[Point] = []
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            for _ in range(min(self.batch, left)):
                pending = [_coordinates(space, point) for point in chosen]
                value = self._improvement(model, inputs, reference, pending, seed)
                chosen.append(self._local_search(space, value, best, {*taken, *chosen}, generator))
        return [space.at(point) for point in chosen]

    def _objectives(self, trials: list[Trial]) -> tuple[Tensor, Tensor]:
        """Normal scores of both objectives (n, 2), larger is better, and of the reference (2)."""
        values = torch.tensor([[t.accuracy, -t.parameters] for t in trials], dtype=torch.float64)
        reference = torch.tensor([self.reference[0], -self.reference[1]], dtype=torch.float64)
        return normal_scores(values, values), normal_scores(reference[None], values)[0]

    def _fit(self, inputs: Tensor, scores: Tensor, seed: int) -> Any:
        from botorch.fit import fit_fully_bayesian_model_nuts
        from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
        from botorch.models.model_list_gp_regression import ModelListGP

        models = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about scores that are not exactly standardised
            for objective in scores.T:
                model = SaasFullyBayesianSingleTaskGP(inputs, objective[:, None])
                fit_fully_bayesian_model_nuts(
                    model,
                    warmup_steps=self.warmup,
                    num_samples=self.samples,
                    thinning=self.thinning,
                    disable_progbar=True,
                    seed=seed,
                )
                models.append(model)
        return ModelListGP(*models)

    def _improvement(
        self, model: Any, inputs: Tensor, reference: Tensor, pending: list[Tensor], seed: int
    ) -> Callable[[Tensor], Tensor]:
        """A function of points (n, D): the logarithm of their expected improvement (n)."""
        from botorch.acquisition.multi_objective.logei import (
            qLogNoisyExpectedHypervolumeImprovement,
        )
        from botorch.sampling.normal import SobolQMCNormalSampler

        improvement = qLogNoisyExpectedHypervolumeImprovement(
            model,
            reference.tolist(),
            inputs,
            sampler=SobolQMCNormalSampler(torch.Size([self.draws]), seed=seed),
            prune_baseline=True,
            X_pending=torch.stack(pending) if pending else None,
        )

        def value(points: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([improvement(chunk[:, None]) for chunk in points.split(64)])

        return value

    def _local_search(
        self,
        space: Space,
        value: Callable[[Tensor], Tensor],
        best: list[Point],
        taken: set[Point],
        generator: torch.Generator,
    ) -> Point:
        """The best point found that is not taken, starting from the best so far and at random."""
        known: dict[Point, float] = {}

        def look(points: list[Point]) -> None:
            fresh = [p for p in dict.fromkeys(points) if p not in known and p not in taken]
            fresh = fresh[: self.evaluations - len(known)]
            if fresh:
                values = value(torch.stack([_coordinates(space, point) for point in fresh]))
                known.update(zip(fresh, values.tolist(), strict=True))

        drawn = [space.draw(generator) for _ in range(self.restarts)]
        for here in [*best[: self.restarts // 2], *drawn][: self.restarts]:
            while len(known) < self.evaluations:
                near = space.neighbours(here)
                look([here, *near])
                ahead = max(near, key=lambda point: known.get(point, -torch.inf))
                if known.get(ahead, -torch.inf) <= known.get(here, -torch.inf):
                    break
                here = ahead
        while not known:
            look([space.draw(generator)])
        return max(known, key=lambda point: known[point])


def _coordinates(space: Space, point: Point) -> Tensor:
    """A point scaled to [0, 1] in each coordinate."""
    return torch.tensor(
        [i / max(1, len(c) - 1) for i, c in zip(point, space.choices, strict=True)],
        dtype=torch.float64,
    )


def normal_scores(values: Tensor, among: Tensor) -> Tensor:
    """Normal scores of values: Φ⁻¹ of the share of ``among`` below each, column by column.

    Equal values count half. Shares stay a quarter of a rank away from 0 and 1, so that scores are
    finite, and a value beyond all others still has a score beyond theirs.

    Args:
        values: what to score, (k, M).
        among: what they are compared with, (n, M).

    Returns:
        Scores (k, M).
    """
    less = (among[None] < values[:, None]).double().mean(1)
    equal = (among[None] == values[:, None]).double().mean(1)
    edge = 0.25 / len(among)
    shares = (less + equal / 2).clamp(edge, 1 - edge)
    scores: Tensor = torch.special.ndtri(shares)
    return scores
