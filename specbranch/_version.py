"""The version, in one place: read by the package, by pyproject.toml and by the native build."""

__version__ = "0.1.0"
