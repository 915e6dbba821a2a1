"""What is installed, as CycloneDX 1.6 (JSON): `python deploy/sbom.py [LOCK]` writes it to the standard output.

It lists the packages of the lock file that this Python has, each with its version, its licence as it says itself, and
the hashes of its files on the index, which are those that pip has checked. It needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"


def components(lock: str) -> list[dict[str, Any]]:
    """One component for each package of `lock` that is installed, in its order."""
    found = []
    for stanza in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]:
        name = stanza.partition("==")[0]
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of another system, or left out of the image
        locked = re.split(r"[\s;\\]", stanza.partition("==")[2], maxsplit=1)[0]
        if package.version != locked:
            raise SystemExit(
                f"{name} {package.version} is installed, and the lock file says {locked}: run `make setup`"
            )
        purl = f"pkg:pypi/{name}@{locked}"
        hashes = [
            {"type": "distribution", "url": purl, "hashes": [{"alg": "SHA-256", "content": each}]}
            for each in re.findall(r"--hash=sha256:([0-9a-f]{64})", stanza)
        ]
        component = {"type": "library", "bom-ref": purl, "name": name, "version": locked, "purl": purl}
        found.append(component | {"licenses": _licences(package), "externalReferences": hashes})
    return found


def _licences(package: Distribution) -> list[dict[str, Any]]:
    said = package.metadata
    if expression := said.get("License-Expression"):
        return [{"expression": expression}]
    trove = [each.rpartition(" :: ")[2] for each in said.get_all("Classifier", []) if each.startswith("License ::")]
    text = (said.get("License") or "").strip()
    names = trove or ([text] if text and "\n" not in text else [])
    return [{"license": {"name": each}} for each in names]


def document(lock: str) -> dict[str, Any]:
    """The whole bill of materials; the same input gives the same bytes."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "perdure",
                "name": "perdure",
                "version": version("perdure"),
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": components(lock),
    }


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK
    json.dump(document(path.read_text()), sys.stdout, indent=2)
    sys.stdout.write("\n")
