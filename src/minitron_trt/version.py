"""The version, apart from the package's face, which imports modules that read the version."""

__version__ = "0.1.0"
