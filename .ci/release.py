"""Builds what a tag publishes: sdist and wheel of both packages in dist/, and build/notes.md.

    python -m pip install build twine
    python .ci/release.py v0.1.0

It publishes nothing; .github/workflows/release.yml does. If the tag, the versions of the packages
and CHANGELOG.md do not agree, it ends in one line before anything is built.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT, ROOT / "packages/lorada-vllm")
TAG = re.compile(r"v(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")


def versions() -> dict[str, str]:
    """The version of each package, by its name."""
    found = {}
    for package in PACKAGES:
        metadata = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))
        name, version = metadata["project"]["name"], metadata["project"].get("version")
        if version is None:  # it stands in the source
            source = package / metadata["tool"]["hatch"]["version"]["path"]
            version = re.findall(r'__version__ = "(.+)"', source.read_text(encoding="utf-8"))[0]
        found[name] = version
    return found


def release_notes(version: str) -> str:
    """The section of CHANGELOG.md for a version; ends the program if it has no date."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## \[{re.escape(version)}\] - (?P<day>.+)\n(?P<notes>(?:(?!^## ).*\n?)*)",
        changelog,
        flags=re.MULTILINE,
    )
    if section is None:
        sys.exit(f"CHANGELOG.md has no section [{version}]: write one")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", section["day"]):
        sys.exit(
            f"CHANGELOG.md says [{version}] - {section['day']}: write the day of the release, "
            "as 2026-12-31"
        )
    return section["notes"].strip() + "\n"


def main(tag: str) -> None:
    """Check that everything names the version of the tag, then build and check the files."""
    match = TAG.fullmatch(tag)
    if match is None:
        sys.exit(f"{tag} is no tag of a release: take one such as v0.1.0")
    version = match[1]
    for name, stated in versions().items():
        if stated != version:
            sys.exit(f"{name} has version {stated}, and the tag is {tag}: make them the same")
    notes = release_notes(version)

    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in PACKAGES:  # the wheel is built from the sdist, so the sdist is whole
        build = (sys.executable, "-m", "build", "--outdir", str(dist), str(package))
        subprocess.run(build, check=True)
    files = sorted(map(str, dist.iterdir()))
    subprocess.run((sys.executable, "-m", "twine", "check", "--strict", *files), check=True)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/notes.md").write_text(notes, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/release.py TAG")
    main(sys.argv[1])
