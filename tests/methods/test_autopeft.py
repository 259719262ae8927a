"""AutoPEFT's block against its equations, and what its sizes count."""

import pytest
from architectures import ARCHITECTURES
from method_cases import counted
from placements import KINDS, AfterFfn, Twin, made
from stacks import moved
from tuners.test_placements import assert_twins

from lorada import BottleneckConfig, LoradaConfig, build_method

pytestmark = pytest.mark.fp64

SERIAL = {"placement": "pfeiffer", "rank": 3, "dropout": 0.0}
PARALLEL = {"rank": 5, "scale": 4.0, "dropout": 0.0}
PARTS = {"serial": BottleneckConfig(**SERIAL), "parallel": BottleneckConfig(**PARALLEL)}


class Serial(Twin):
    """LN(A_s(z) + y + x), z = LN(y + x), in the place of LN(y + x)."""

    def forward(self, y_plus_x, further=0.0):
        return self.module(self.adapter(self.module(y_plus_x)) + y_plus_x + further)


class Parallel(AfterFfn):
    """The same with A_p(x) in the outer sum alone."""

    def forward(self, y_plus_x):
        term = self.adapter(self.x)
        serial = isinstance(self.module, Serial)
        return self.module(y_plus_x, term) if serial else self.module(y_plus_x + term)


@pytest.mark.parametrize("present", ["serial", "parallel", "serial parallel", "parallel serial"])
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta_v2", "distilbert", "bart"])
def test_the_block_is_its_equations_with_their_gradients(name, present):
    kind = KINDS[name]
    serial = (kind.norm, f"{kind.held}.bneck_pfeiffer", Serial)
    parallel = (kind.norm, f"{kind.held}.bneck", Parallel)
    twins = [serial] * ("serial" in present) + [parallel] * ("parallel" in present)
    config = LoradaConfig(parts=[PARTS[part] for part in present.split()])
    model = moved(made(name), config)
    assert_twins(model, name, twins)
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_the_balanced_example_on_roberta_is_552960_weights_and_18720_biases():
    assert 12 * 2 * 768 * (12 + 12 + 6) == 552_960
    assert counted("autopeft", "roberta-base")["trainable"] == 552_960 + 18_720


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deberta_v2", ["pfeiffer", "ffn", "prefix"]),
        ("mbart", ["ffn", "prefix"]),  # no serial adapter: no norm follows the FFN's sum
        ("bart", ["pfeiffer", "ffn", "prefix"]),
    ],
)
def test_a_model_has_the_blocks_that_it_has_a_form_of(name, parts):
    config = build_method("autopeft", ARCHITECTURES[name]().config).config
    assert [getattr(part, "placement", "prefix") for part in config.parts] == parts
