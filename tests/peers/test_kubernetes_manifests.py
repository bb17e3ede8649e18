"""The manifests are what Kubernetes' own schemas take, unknown fields refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

FOLDER = Path(__file__).parent.parent.parent / "deploy/kubernetes"
# The oldest whose preStop sleep needs no switch, and the newest that the schemas are here for.
VERSIONS = ["1.30", "1.37"]
MANIFESTS = [*sorted(FOLDER.glob("*.yaml")), FOLDER / "secret.yaml.example"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_valid(path: Path, version: str) -> None:
    for document in documents(path):
        assert validate(document, version, strict=True) == version


def test_a_misspelt_field_is_found() -> None:
    (manifest,) = documents(FOLDER / "statefulset.yaml")
    manifest["spec"]["template"]["spec"]["containers"][0]["startupprobe"] = {}
    with pytest.raises(ValidationError):
        validate(manifest, VERSIONS[-1], strict=True)
