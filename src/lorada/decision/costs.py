"""What methods cost: which of two is cheaper, by how much, and which of several is the cheapest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COSTS = ("parameters", "seconds", "bytes")  # what counts first, then what decides between equals
CHEAPER = 0.8  # of another's cost: what is nearer is the granularity of sizes
Costs = Mapping[str, Mapping[str, float]]  # method → kind of cost → how much


@dataclass(frozen=True)
class Saving:
    """What a method has less of than another."""

    kind: str  # one of ``COSTS``
    share: float  # of the other's cost


def saving(costs: Costs, method: str, other: str) -> Saving | None:
    """What a method saves: in the first cost in which the two differ; None if the other does."""
    for kind in COSTS:
        cost = costs.get(method, {}).get(kind)
        cost_of_other = costs.get(other, {}).get(kind)
        if cost is None or cost_of_other is None:
            continue
        if cost < CHEAPER * cost_of_other:
            return Saving(kind, cost / cost_of_other)
        if cost_of_other < CHEAPER * cost:
            return None
    return None


def cheapest(costs: Costs, scores: Mapping[str, float], methods: Sequence[str]) -> str:
    """The cheapest method; of those that are as cheap, the one with the highest score."""
    left = list(methods)
    for kind in COSTS:
        known = {}
        for method in left:
            cost = costs.get(method, {}).get(kind)
            if cost is not None:
                known[method] = cost
        if len(known) < len(left):  # a cost that some lack does not tell them apart
            continue
        least = min(known.values())
        left = [method for method in left if CHEAPER * known[method] <= least]
    return max(left, key=scores.__getitem__)
