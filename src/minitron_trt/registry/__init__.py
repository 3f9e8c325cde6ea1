"""Artifacts as OCI images: packed, pushed to a registry, pulled from one, signed and verified."""
