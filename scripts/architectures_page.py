"""Writes a section of docs/tested.md: what was tried on which architecture.

PYTHONPATH=tests:tests/helpers python scripts/architectures_page.py
"""

import itertools
from pathlib import Path

from architecture_cells import COLUMNS, REASONS, is_slow
from architectures import ARCHITECTURES
from marked import with_part, write_part

from lorada.attention.hooks import is_deberta

PAGE = Path(__file__).parents[1] / "docs" / "tested.md"
SCRIPT = "scripts/architectures_page.py"
HEADER = """\

What was run on which architecture: {architectures} tiny models, built from transformers' configs,
{cells} cells. {run} are tests (`tests/methods/test_architectures.py`), the others
say why there is none. `make test` and `make test-more` run {quick}, `make test-all` every one.
Other models are refused when the map is placed.

"""
FOOTER = """

- **map**: each layer adds Eqs. 6–15, written out in the test, to 1e-5 in fp32, also behind a
  sliding window; the full map in encoders, the lower triangle in decoders, none in cross-attention.
  With the adapter disabled the logits are bit for bit those of the base.
- **padding**: a padded batch gives each sample the logits it has alone.
- **sdpa = eager**, **flex = eager**: the same logits under each of transformers' implementations.
- **dynamic cache**, **static cache**: a batch (of decoders: padded on the left) is generated with
  the cache; every sample has the logits it gets alone without one.
- **compile**: `torch.compile(fullgraph=True)`, so no graph break, and the same logits.
- **interface**: the model calls transformers' attention interface. **hooks**: it computes attention
  itself, and hooks (`attention/hooks.py`) add the map.

Each placement of a bottleneck adapter is compared with plain modules on these models in
`tests/tuners/test_placements.py`.
"""


def page(text: str) -> str:
    """The page with its section made anew."""
    return with_part(text, SCRIPT, section())


def section() -> str:
    """The section, from the cells and the reasons."""
    lines = ["| architecture | reached by | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|---|" + "---|" * len(COLUMNS))
    for name, build in ARCHITECTURES.items():
        way = "hooks" if any(map(is_deberta, build().modules())) else "interface"
        row = [REASONS.get((name, column), "✓") for column in COLUMNS]
        lines.append(f"| {name} | {way} | " + " | ".join(row) + " |")
    cells = list(itertools.product(ARCHITECTURES, COLUMNS))
    return HEADER.format(
        architectures=len(ARCHITECTURES), cells=len(cells), run=len(cells) - len(REASONS),
        quick=sum(not is_slow(*cell) for cell in cells if cell not in REASONS),
    ) + "\n".join(lines) + FOOTER  # fmt: skip


if __name__ == "__main__":
    write_part(PAGE, SCRIPT, section())
