"""Plain YAML: texts, numbers, true, false, null, and lists and mappings of these; no more.

Files may come from strangers, so three things are refused: aliases, because a few lines of them can
grow into billions of values; tags, because they make Python objects; and a key that is given twice,
because the second value would hide the first.
"""

import re
from typing import Any

import yaml

FLOAT_TAG = "tag:yaml.org,2002:float"
BOOL_TAG = "tag:yaml.org,2002:bool"
# What a text without quotes may be read as; dates and sexagesimal numbers, for instance, may not.
PLAIN_TAGS = ("tag:yaml.org,2002:null", BOOL_TAG, "tag:yaml.org,2002:int", FLOAT_TAG)


class _PlainLoader(yaml.SafeLoader):
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
        """A dictionary; every key must be a text and be given once.

        Others are refused.
        """
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, f"{key!r} is a key and no text: put it in quotes")
            if key in mapping:
                raise _refused(key_node, f"{key!r} is given twice: leave one out")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def _is_plain(tag: str, first_letter: str) -> bool:
    """Whether texts that begin so may be read as this kind of value."""
    if tag == BOOL_TAG:
        return first_letter in "tTfF"  # true and false, and not yes, no, on and off
    return tag in PLAIN_TAGS


def _plain_resolvers() -> dict[str, list[tuple[str, Any]]]:
    """PyYAML's patterns of unquoted values by their first letter, as far as they are plain."""
    resolvers = {}
    for first_letter, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items():
        plain_patterns = []
        for tag, pattern in patterns:
            if _is_plain(tag, first_letter):
                plain_patterns.append((tag, pattern))
        resolvers[first_letter] = plain_patterns
    return resolvers


_PlainLoader.yaml_implicit_resolvers = _plain_resolvers()
# PyYAML reads `1e-5` as a text, because it has no decimal point; here it is a number.
_PlainLoader.add_implicit_resolver(
    FLOAT_TAG, re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), "+-0123456789"
)


def _refused(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _PlainDumper(yaml.SafeDumper):
    """A dumper that never writes an alias, because `read_yaml` refuses aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """True for all data."""
        return True


def read_yaml(text: str, source: str) -> Any:
    """Read a text as YAML; errors call it ``source``.

    Raises:
        ValueError: for what is not YAML, with the line.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise ValueError(f"{source} is not YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two come from numbers
        mark = getattr(error, "problem_mark", None)
        # The line helps where there are several.
        line = f" line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{source}{line} is not YAML: {problem}") from error


def write_yaml(data: Any) -> str:
    """YAML that ``read_yaml`` reads again."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
