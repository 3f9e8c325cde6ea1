"""What the package's page says of where the repository lies: its URLs, and the README's links.

PROJECT_URL is the repository's address; `make package` takes it from where the checkout was cloned.
Without one there are no URLs, and the links stay as they are in the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"\]\((?![a-z]+:|#)([^)]+)\)")
# The address of a clone: https, with or without who asks, or ssh.
_ADDRESS = re.compile(r"(?:https://|ssh://)?(?:[^/@]+@)?([\w.-]+(?::\d+)?)[:/](.+?)(?:\.git)?/?")


class CustomMetadataHook(MetadataHookInterface):
    """Adds the README and the URLs to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set what pyproject.toml calls dynamic, but for the version."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        address = os.environ.get("PROJECT_URL", "")
        match = _ADDRESS.fullmatch(address)
        # A path of this machine leads nobody else anywhere.
        if match and not address.startswith(("/", ".", "file:")):
            url = f"https://{match[1]}/{match[2]}"
            files = f"{url}/blob/main"
            text = _RELATIVE.sub(rf"]({files}/\1)", text)
            metadata["urls"] = {
                "Source": url,
                "Documentation": f"{files}/docs/index.md",
                "Changelog": f"{files}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
