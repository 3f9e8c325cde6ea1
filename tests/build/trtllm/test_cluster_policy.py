"""What a policy linter says of the Kubernetes job, and why the rest is as it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from click.testing import Result

CHECKOV: Final = os.environ.get("CHECKOV")
pytestmark = pytest.mark.skipif(
    CHECKOV is None, reason="make test-policy installs checkov and names it by CHECKOV"
)
# What the linter would have, and what stands against it.
LEFT: Final = {
    "CKV_K8S_8": "the Pod for copying answers nobody whose life could be probed",
    "CKV_K8S_9": "nor whose readiness",
    "CKV_K8S_15": "a release of 30 GB whose tag does not move is not asked for anew",
    "CKV_K8S_43": "whose digest is the registry's to say: --image takes one",
    "CKV2_K8S_6": "network policies are the namespace's, and its users may not write them",
}


def test_the_linter_is_content_but_for_what_is_known(
    checkpoint: Path, output: Path, command: Callable[..., Result]
) -> None:
    assert CHECKOV is not None
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "kubernetes")
    options = ("--namespace", "ml", "--image-pull-secret", "ngc")
    assert command(*arguments, *options).exit_code == 0
    argv = [CHECKOV, "--file", f"{output}.yaml", "--framework", "kubernetes", "--output", "json"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    results = json.loads(said)["results"]

    assert {failed["check_id"] for failed in results["failed_checks"]} == set(LEFT)
    assert len(results["passed_checks"]) > 150
