"""Validates Kubernetes manifests against CRD files, stricter than the API server: no unknown field.

    python -m tests.kubernetes_schema FOLDER_OF_CRDS cluster/raycluster.yaml cluster/rayjob.yaml

The CRD files are KubeRay's own (`ray-operator/config/crd/bases` of its repository).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

# The CRD files have 20,000 lines: the C loader takes seconds where the other takes half a minute.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def problems(crds: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, one line each; empty when it is valid.

    Raises:
        LookupError: no CRD for its kind and version.
    """
    # apiVersion, kind and metadata are validated by the API server itself.
    errors = _validator(crds, manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors)


def manifests(path: Path) -> list[dict[str, Any]]:
    """The documents of a manifest file."""
    with path.open(encoding="utf-8") as source:
        return [document for document in yaml.load_all(source, Loader=_LOADER) if document]


@lru_cache
def _validator(crds: Path, api_version: str, kind: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(_strict(_schema_of(crds, api_version, kind)))


def _schema_of(crds: Path, api_version: str, kind: str) -> dict[str, Any]:
    group, _, version = api_version.partition("/")
    for crd in _crds(crds):
        spec = crd["spec"]
        if spec["group"] == group and spec["names"]["kind"] == kind:
            for found in spec["versions"]:
                if found["name"] == version:
                    return dict(found["schema"]["openAPIV3Schema"])
    raise LookupError(f"no CRD of {api_version} {kind} in {crds}")


def _crds(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.yaml")):
        yield from manifests(path)


def _strict(node: Any) -> Any:
    """An OpenAPI schema of Kubernetes as a JSON schema that refuses unknown fields."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    # Under `properties` the keys are field names, which may be called like a keyword.
    made = {
        key: {name: _strict(field) for name, field in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in node.items()
    }
    fields = made.get("properties")
    if fields is not None and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if "required" in made:  # the API server fills in defaults before it looks for missing fields
        made["required"] = [
            x for x in made["required"] if "default" not in (fields or {}).get(x, {})
        ]
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if made.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def main(arguments: list[str]) -> int:
    """Prints one line per file or problem; 1 when there is a problem."""
    folder, *files = map(Path, arguments)
    code = 0
    for file in files:
        found = [p for document in manifests(file) for p in problems(folder, document)]
        print("\n".join(f"{file}: {problem}" for problem in found) or f"{file}: valid")
        code |= bool(found)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
