"""`minitron-trt migrate`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import cloup

from minitron_trt.console import PATH, Console, coloured, console_options
from minitron_trt.errors import one_line
from minitron_trt.hub_options import HUB_OPTIONS
from minitron_trt.tables import folded, output_width

if TYPE_CHECKING:
    from minitron_trt.migrate.fates import SettingFate
    from minitron_trt.migrate.migration import Migration

_COLOURS: Final = {"carried": "green", "changed": "yellow", "lost": "red"}
_LONGEST_VALUE: Final = 60


@cloup.command()
@cloup.argument("source", type=PATH)
@cloup.option_group(
    "Migration",
    cloup.option("-o", "--output", type=PATH, help="Folder to write model and repository to"),
    cloup.option(
        "--model",
        help="What an engine was made of: a model folder, hub id or checkpoint  [default: what the "
        "source itself names]",
    ),
    cloup.option("--tokenizer", type=PATH, help="Folder of the tokenizer  [default: the source's]"),
    cloup.option(
        "--tp", type=click.IntRange(1), help="Tensor parallelism  [default: the source's]"
    ),
    cloup.option(
        "--pp", type=click.IntRange(1), help="Pipeline parallelism  [default: the source's]"
    ),
    cloup.option("--dry-run", is_flag=True, help="Print the report and write nothing"),
    cloup.option("--overwrite", is_flag=True, help="Replace a migration that is already there"),
)
@HUB_OPTIONS
@console_options
def migrate(
    console: Console,
    source: Path,
    output: Path | None,
    dry_run: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Leave engines for TensorRT-LLM's PyTorch runtime.

    SOURCE is a checkpoint of convert, TensorRT-LLM or ModelOpt, an engine (its folder, or its
    config.json alone) or a Triton repository that serves one. A checkpoint's ranks are joined to a
    Hugging Face folder; an engine's weights cannot be read, so its model is served in its place.
    The report says what became of every setting: carried, changed or lost.

    Example: minitron-trt migrate engine --model nvidia/Minitron-4B-Base -o migrated
    """
    from minitron_trt.migrate.migration import MigrateOptions, plan_migration

    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    migration = plan_migration(source, MigrateOptions(**options))
    if not dry_run:
        assert output is not None
        migration.carry_out(output, overwrite=overwrite, progress=console.progress)
    record = migration.to_json() | ({} if dry_run else {"migration": str(output)})
    place = None if dry_run else output
    console.result(record, folded(describe(migration, place), output_width()))


def describe(migration: Migration, output: Path | None) -> str:
    """Return the report as text: what was lost for one reason shares a line."""
    report = migration.to_json()
    counts = ", ".join(f"{report[fate]} {fate}" for fate in _COLOURS)
    lines = []
    for section, settings in groupby(migration.ledger.settings, key=lambda s: s.section):
        lines += [section, *_lines(list(settings))]
    if output is not None:
        lines.append(f"{output}: {counts}")
        lines.append(f"  next: minitron-trt check {output}/{report['repository']}")
    else:
        lines.append(f"{migration.origin.place}: {counts}")
    return "\n".join(lines)


def _lines(settings: list[SettingFate]) -> Iterator[str]:
    for fate, colour in _COLOURS.items():
        for text in _by_reason([setting for setting in settings if setting.fate == fate]):
            yield f"  {coloured(f'{fate:7}', colour)}  {one_line(text)}"


def _by_reason(settings: Iterable[SettingFate]) -> Iterator[str]:
    """Yield a line for each setting that has a value of its own, and one for each common fate."""
    common: dict[str, list[str]] = {}
    for setting in settings:
        file = setting.becomes.partition(": ")[0]
        if setting.fate == "carried" and not setting.reason and not _has_value(setting):
            common.setdefault(f"→ {file}", []).append(setting.name)
        elif setting.becomes:
            reason = f" ({setting.reason})" if setting.reason else ""
            value = textwrap.shorten(setting.value, _LONGEST_VALUE, placeholder=" ...")
            yield f"{setting.name} {value} → {setting.becomes}{reason}"
        else:
            common.setdefault(f"({setting.reason})", []).append(setting.name)
    for reason, names in common.items():
        yield f"{', '.join(names)} {reason}"


def _has_value(setting: SettingFate) -> bool:
    return setting.becomes.startswith("--") or "=" in setting.becomes
