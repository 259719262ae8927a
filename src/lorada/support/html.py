"""Makes one HTML file of a template, a style and scripts; it works offline and asks for nothing.

A folder holds ``page.html.j2`` and ``page.css``, which add to ``report.html.j2`` and
``report.css``. The page's security policy allows only the given scripts, by their hashes, and no
connection. All names and texts are escaped by Jinja.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.support.error_messages import needs_extra

with needs_extra("explore"):
    import jinja2
    from markupsafe import Markup


HERE = Path(__file__).parent


def render_page(
    folder: Path,
    title: str,
    scripts: Sequence[str],
    *,
    template: str = "page.html.j2",
    **values: Any,
) -> str:
    """The page as HTML; the same values always give the same page.

    The template puts each script, which is JavaScript, between tags.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    styles = (HERE / "report.css", folder / "page.css")
    text = environment.get_template(template).render(
        policy=_policy(scripts),
        title=title,
        scripts=[Markup(script) for script in scripts],
        style=Markup("".join(path.read_text(encoding="utf-8") for path in styles)),
        **values,
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # no file holds a half character


def _policy(scripts: Sequence[str]) -> str:
    """The content of the page's ``Content-Security-Policy``."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
