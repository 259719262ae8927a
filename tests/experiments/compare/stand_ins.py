"""Stand-ins for pieces that are not merged yet."""

import sys
import types
import json
from dataclasses import dataclass


def put():
    from lorada.runs.models.count import parameters_of

    if not have("lorada.experiments.compare.sizes"):
        sizes = types.ModuleType("sizes")

        class Budget:
            @staticmethod
            def parse(text):
                return float(text.rstrip("%"))

        @dataclass
        class Sized:
            parts: dict
            counts: dict
            above: bool

        def size_for(recipe, budget):
            return Sized({}, parameters_of(recipe), False)

        sizes.Budget, sizes.size_for = Budget, size_for
        sys.modules["lorada.experiments.compare.sizes"] = sizes
    if not have("lorada.methods.sizes"):
        rates = types.ModuleType("rates")
        rates.default_rate = lambda name: 1e-3
        sys.modules["lorada.methods.sizes"] = rates
    if not have("lorada.report.comparison.write"):
        write = types.ModuleType("write")

        def write_report(folder, against=None, with_text=False):
            (folder / "report.json").write_text(
                json.dumps(
                    {"verdict": "v", "sentences": [], "lines": [], "metric": "", "commands": {}}
                )
            )
            return [folder / "report.json"]

        write.write_report = write_report
        sys.modules["lorada.report.comparison.write"] = write
    if not have("lorada.runs.inference.forgetting"):
        f = types.ModuleType("f")

        def forgetting(run):
            from lorada.runs.folder.result import read_result, write_result

            write_result(run.folder, {**read_result(run.folder), "forgetting": {}})

        f.forgetting = forgetting
        sys.modules["lorada.runs.inference.forgetting"] = f


def have(name):
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
