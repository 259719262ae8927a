"""Adapters that a newer version of this package has saved: what loads, and what is refused."""

from typing import Any

from packaging.version import InvalidVersion, Version

from lorada.support.version import __version__


def is_newer(version: Any) -> bool:
    """Whether a ``lorada_version`` of an adapter lies behind the installed one; None does not.

    Raises:
        ValueError: for what is no version.
    """
    try:
        return version is not None and Version(str(version)) > Version(__version__)
    except InvalidVersion:
        raise ValueError(
            f"lorada_version={version!r} is not a version such as {__version__}"
        ) from None


def newer_version(version: Any) -> str:
    """What to say of an adapter from a newer version; nothing of any other."""
    if not is_newer(version):
        return ""
    return f"saved by lorada {version}, this is {__version__}: pip install -U lorada"


def saved_by(config: Any) -> str:
    """The end of an error about a config: that a newer version wrote it, if one did."""
    text = newer_version(getattr(config, "lorada_version", None))
    return f" ({text})" if text else ""
