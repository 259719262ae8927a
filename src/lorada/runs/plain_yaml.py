"""Reads and writes YAML as plain data: texts, numbers, booleans, lists and mappings.

Recipes may come from strangers, so three things are refused: aliases, because a few lines of them
can grow into billions of values; tags, because they make Python objects; and a key that is given
twice, because the second value would hide the first.
"""

import math
import re
from typing import Any

import yaml

PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))


class _Plain(yaml.SafeLoader):
    """A loader that reads only true and false as booleans: in `save_strategy=no`, no is a text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases and tags before a value is made of them."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"*{event.anchor} stands for another value: write that value out")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused(event, f"the tag {event.tag} has no place in a recipe: leave it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A dictionary; every key must be a text and be given once."""
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, f"{key!r} is a key and no text: put it in quotes")
            if key in found:
                raise _refused(key_node, f"{key!r} is given twice: leave one out")
            found[key] = self.construct_object(value_node, deep=deep)
        return found


_Plain.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in pairs
        if tag in PLAIN and (not tag.endswith(":bool") or first in "tTfF")
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# PyYAML reads `1e-5` as a text, because it has no decimal point; here it is a number.
_Plain.add_implicit_resolver(PLAIN[3], re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), "+-0123456789")


def _refused(where: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)


class _Written(yaml.SafeDumper):
    """A dumper that never writes an alias, because `read_yaml` refuses aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """True for all data."""
        return True


def read_yaml(text: str, source: str) -> Any:
    """Read a text as YAML; errors call it ``source``."""
    try:
        return yaml.load(text, _Plain)
    except RecursionError as error:
        raise ValueError(f"{source} is not YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two come from numbers
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{source}{line} is not YAML: {problem}") from error


def write_yaml(data: Any) -> str:
    """YAML that ``read_yaml`` reads again."""
    return yaml.dump(data, Dumper=_Written, sort_keys=False, allow_unicode=True)


def refuse_unstorable(name: str, value: Any) -> None:
    """Refuse a setting that no file can hold: infinity, NaN, text that is not valid Unicode.

    Lists and dictionaries are searched too.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{name}={value!a} is not UTF-8 text: type it again")
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_unstorable(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            refuse_unstorable(name, inner)
