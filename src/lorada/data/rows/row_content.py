"""What a row says: its content, by which copies are known, and its right answer."""

import json
from typing import Any

from lorada.data.forms.row_values import GROUP
from lorada.data.tool_calls import calls_of
from lorada.support.row_sources import Form, Row


def content_of(row: Row) -> str:
    """A row without its group as one text, the same from CSV and JSON; blanks count as one."""
    content = {}
    for field, value in row.items():
        if value is not None and field != GROUP:
            content[field] = _plain_field(field, value)
    return json.dumps(content, sort_keys=True)


def _plain_field(field: str, value: Any) -> Any:
    """The value of a field in one type, whatever type its file has: in a table all are texts."""
    if field in ("label", "answer"):
        return str(value)
    if field == "labels":
        return sorted(value)
    if field == "score":
        return float(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    """A value whose texts have one blank wherever they had several."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def answer_of(row: Row) -> str:
    """The right answer to a row, for a model that answers with a text."""
    if "eval_response" in row:
        return str(row["eval_response"])
    if "messages" not in row:
        return str(row["response"])
    last_turn = row["messages"][-1]
    calls = [call.text for call in calls_of(last_turn)]
    if last_turn.get("content"):
        return "\n".join([last_turn["content"], *calls])
    return "\n".join(calls)


def right_answer(row: Row, form: Form) -> Any:
    """The right answer to a row as ``predictions.jsonl`` has it (``right``, by ``--with-text``)."""
    if form == "label":
        return str(row["label"])
    if form == "labels":
        return list(row["labels"])
    if form == "score":
        return float(row["score"])
    if form == "choice":
        return int(row["answer"])
    return answer_of(row)  # of a prompt or a chat: a text


def class_names_of(row: Row) -> list[str]:
    """The class of a text, or its labels."""
    return [str(row["label"])] if "label" in row else list(row["labels"])
