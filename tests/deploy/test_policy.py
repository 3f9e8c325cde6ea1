"""What a policy linter says of the manifests, and why the rest is as it is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned

from minitron_trt.deploy.writing import write_files

CHECKOV: Final = os.environ.get("CHECKOV")
pytestmark = pytest.mark.skipif(
    CHECKOV is None, reason="make test-policy installs checkov and names it by CHECKOV"
)
# What the linter would have, and what stands against it.
LEFT: Final = {
    "CKV_K8S_15": "a release of 30 GB whose tag does not move is not asked for anew",
    "CKV_K8S_21": "the namespace is the overlay's, which kustomize puts into every object",
    "CKV_K8S_43": "whose digest is the registry's to say: --image takes one",
}


def test_the_linter_is_content_but_for_what_is_known(
    repository_of: RepositoryOf, tmp_path: Path
) -> None:
    assert CHECKOV is not None
    output = tmp_path / "deployment"
    write_files(planned(repository_of("H100"), route="public"), output)
    argv = [
        *(CHECKOV, "--directory", str(output / "base")),
        *("--framework", "kubernetes", "--output", "json"),
    ]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    results = json.loads(said)["results"]

    assert {failed["check_id"] for failed in results["failed_checks"]} == set(LEFT)
    assert len(results["passed_checks"]) > 150
