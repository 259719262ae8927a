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
    """What a method has less of than another; None if it is not the cheaper one of the two.

    The first kind of cost in which the two differ by a fifth decides. Kinds that are not known of
    both are passed over.
    """
    for kind in COSTS:
        cost = costs.get(method, {}).get(kind)
        cost_of_other = costs.get(other, {}).get(kind)
        if cost is None or cost_of_other is None:
            continue
        if cost < CHEAPER * cost_of_other:
            return Saving(kind, cost / cost_of_other)
        # The other is cheaper in what counts more, so that later kinds are not asked.
        if cost_of_other < CHEAPER * cost:
            return None
    return None


def cheapest(costs: Costs, scores: Mapping[str, float], methods: Sequence[str]) -> str:
    """The cheapest method; of those that are as cheap, the one with the highest score.

    One kind of cost after the other leaves only the methods that are about as cheap as the
    cheapest. What none of them tells apart is decided by the score.
    """
    candidates = list(methods)
    for kind in COSTS:
        amounts = {}
        for method in candidates:
            cost = costs.get(method, {}).get(kind)
            if cost is not None:
                amounts[method] = cost
        if len(amounts) < len(candidates):  # a cost that some lack does not tell them apart
            continue
        least = min(amounts.values())
        candidates = [method for method in candidates if CHEAPER * amounts[method] <= least]
    return max(candidates, key=scores.__getitem__)
