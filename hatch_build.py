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
# Where a clone is from: https, with or without who asks, or ssh in either of its forms, whose port
# is not the web's. A path of this machine, which leads nobody else anywhere, is none of them.
_ADDRESS = re.compile(
    r"(?:https?://(?:[^/@]+@)?(?P<web>[\w.-]+(?::\d+)?)/"
    r"|ssh://(?:[^/@]+@)?(?P<ssh>[\w.-]+)(?::\d+)?/"
    r"|(?:[^/@]+@)?(?P<scp>[\w.-]+):(?!/))"
    r"(?P<path>.+?)(?:\.git)?/?"
)


class CustomMetadataHook(MetadataHookInterface):
    """Adds the README and the URLs to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set what pyproject.toml calls dynamic, but for the version."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        match = _ADDRESS.fullmatch(os.environ.get("PROJECT_URL", ""))
        if match:
            url = f"https://{match['web'] or match['ssh'] or match['scp']}/{match['path']}"
            files = f"{url}/blob/main"
            text = _RELATIVE.sub(rf"]({files}/\1)", text)
            metadata["urls"] = {
                "Source": url,
                "Documentation": f"{files}/docs/index.md",
                "Changelog": f"{files}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
