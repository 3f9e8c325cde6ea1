"""`--config FILE`: the options of a command from a YAML or TOML file; those typed win."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Final

import click

from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.option_types import suggestion

_AT_MOST: Final = 1 << 20


class _Written(str):
    """A number as a file has it; its value is for where it stands in an inner list or object."""

    __slots__ = ("value",)
    value: float

    @classmethod
    def of(cls, text: str, value: float) -> _Written:
        """Return a text with its value."""
        written = cls(text)
        written.value = value
        return written


def read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what a file says the defaults of a command; an error names what it says wrongly."""
    if path is None:
        return
    names = _names(context.command)
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = names.get(str(key).replace("_", "-"))
        if name is None:
            raise UsageError(
                f"{path} has {key!r}, which is no option of {context.info_name}"
                f"{suggestion(str(key), names)}"
            )
        if isinstance(value, Mapping | list) and not _takes_several(name):
            raise UsageError(f"{path}: {key} has several values; expected one")
        try:
            defaults[name.name or ""] = _as_typed(name, value)
        except ValueError as error:
            raise UsageError(f"{path}: {key} {error}") from error
    context.default_map = {**(context.default_map or {}), **defaults}


def _names(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters by what a file may call them: an option's names without dashes."""
    return {
        spelling.lstrip("-").replace("_", "-"): parameter
        for parameter in command.params
        # Not --help, nor --config itself.
        if parameter.expose_value
        for spelling in (*parameter.opts, str(parameter.name))
    }


def _takes_several(parameter: click.Parameter) -> bool:
    return parameter.multiple or parameter.nargs != 1


def _as_typed(parameter: click.Parameter, value: Any) -> Any:
    """Return a value as it would be typed; NAME=VALUE pairs may be an object, null is silence.

    click makes of a number what Python does, which takes 1.5 for 1; of a text what it should be.
    ValueError for what nobody can type.
    """
    if value is None:
        return None
    if isinstance(value, bool) and getattr(parameter, "count", False):
        # `verbose: true` is one -v.
        return str(int(value))
    if not _takes_several(parameter):
        return _text(value)
    if isinstance(value, Mapping):
        return [f"{key}={_text(item)}" for key, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Lists, objects and nulls within others are typed as JSON.
    inner = value is None or isinstance(value, Mapping | list)
    text = json.dumps(_plain(value), default=str) if inner else str(value)
    if "\0" in text:
        raise ValueError("has a NUL character, which no option can have")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, _Written) else value


def _read(path: Path) -> Mapping[str, Any]:
    try:
        # A pipe is read, too: a shell's <(...) is one. What has no end, like /dev/zero, is refused.
        with path.open(encoding="utf-8") as file:
            text = file.read(_AT_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"--config {path} cannot be read: {error}") from error
    if len(text) > _AT_MOST:
        raise BadInputError(
            f"--config {path} is longer than {_AT_MOST} characters; expected lines `option: value`"
        )
    try:
        record = _from_toml(text) if path.suffix == ".toml" else _from_yaml(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"--config {path} is damaged: {error}") from error
    if not isinstance(record, Mapping):
        raise BadInputError(
            f"--config {path} is no list of options; expected lines `option: value`"
        )
    return record


def _from_toml(text: str) -> Any:
    # Few calls of a command have such a file; the same goes for YAML.
    import tomllib

    return tomllib.loads(text, parse_float=lambda word: _Written.of(word, float(word)))


def _from_yaml(text: str) -> Any:
    """Return what YAML says, numbers and times as text; ValueError for what is none."""
    import yaml

    from minitron_trt.yaml_bounds import check_bounds

    class AsWritten(yaml.SafeLoader):  # type: ignore[misc]
        """To YAML 1.1 the time 2:00:00 is the number 7200, and the version 1.10 is 1.1."""

        yaml_implicit_resolvers: ClassVar = {
            start: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
            for start, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    for kind in ("int", "float"):
        tag = f"tag:yaml.org,2002:{kind}"
        value_of = yaml.SafeLoader.yaml_constructors[tag]

        def as_written(loader: Any, node: Any, value_of: Any = value_of) -> _Written:
            value = value_of(loader, node)
            # Infinity is typed without YAML's point.
            return _Written.of(str(value) if value in (inf, -inf) else node.value, value)

        AsWritten.add_constructor(tag, as_written)

    try:
        check_bounds(text)
        record = yaml.load(text, AsWritten)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    # A file whose every line is a comment says nothing, in TOML as well.
    return {} if record is None else record
