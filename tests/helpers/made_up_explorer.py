"""Made-up data of the explorer's page: as a causal model with a map and LoRA would give them."""

import numpy as np

from lorada.explore.explorer_page import pack

SENTENCE = ["The", " little", " cat", " saw", " a", " dog", " and", " ran", "."]
PARTS = ["map", "LoRA"]
WORDS = ("and", "then", "she", "he", "it", "we", "the", "a", "all", "some", "his", "her", "our")
SIZE = 0.1  # of a map


def softmax_maps(random, heads, length):
    """Softmax maps of a causal model, (heads, length, length), with much on the first token."""
    scores = random.normal(0, 1.5, (heads, length, length))
    scores[:, :, 0] += 3
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def made_up_layer(random, heads, length, number, has_map, matrices):
    """A layer of the page; the list ``matrices`` gets its arrays."""
    left, right = random.normal(0, 1, (2, heads, length, 2))
    made = {
        "softmax": softmax_maps(random, heads, length),
        "map": np.tril(SIZE * left @ right.transpose(0, 2, 1)) if has_map else None,
        "without": softmax_maps(random, heads, length),
    }
    matrices.append(made)
    shares = random.dirichlet([4, 1, 1, 2], heads).T.tolist()
    numbers = {
        "effect": (SIZE * random.gamma(2, 1, heads)).tolist(),
        "negative": random.uniform(0.1, 0.5, heads).tolist(),
    }
    return {
        "name": f"layers.{number}.self_attn",
        **(numbers if has_map else dict.fromkeys(numbers)),
        "moved": random.gamma(2, 0.1, heads).tolist(),
        "attends": dict(zip(("first", "previous", "itself", "other"), shares, strict=True)),
        **{kind: None if one is None else pack(one) for kind, one in made.items()},
    }


def made_up_next(random):
    """Ten likely words."""
    shares = sorted(random.dirichlet([0.4] * 12), reverse=True)[:10]
    order = random.permutation(len(WORDS))[:10]
    return [(f" {WORDS[i]}", float(share)) for i, share in zip(order, shares, strict=True)]


def made_up_page(
    tokens=None, name="lorada_a", layers=3, heads=4, parts=PARTS, no_map=(), matrices=None
):  # fmt: skip
    """Data of a page with the given sentences.

    ``tokens`` has those of each sentence, ``no_map`` the numbers of layers without a map. The list
    ``matrices`` gets the arrays of each layer, by sentence and layer.
    """
    random, matrices = np.random.default_rng(0), [] if matrices is None else matrices
    tokens = tokens or [SENTENCE, ["Dogs", " bark", "."]]

    def shown(text):
        change = random.gamma(2, 0.05, (len(parts) + 1, layers)).cumsum(1)
        return {
            "layers": [
                made_up_layer(random, heads, len(text), number, number not in no_map, matrices)
                for number in range(layers)
            ],
            "next": {key: made_up_next(random) for key in ("with", "without", *parts)},
            "change": dict(zip(("all", *parts), change.tolist(), strict=True)),
        }

    return {
        "sentences": [{"tokens": list(one), "text": "".join(one)} for one in tokens],
        "run": {
            "name": name, "method": "lorada_a", "parts": list(parts), "head": None,
            "shown": [shown(text) for text in tokens],
        },
    }  # fmt: skip
