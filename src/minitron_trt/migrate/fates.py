"""What becomes of a setting on the way from an engine to TensorRT-LLM's PyTorch runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from minitron_trt.errors import BadInputError

RECIPE: Final = "recipe"
"""The place of the targets that are fields of a ServingRecipe."""


_LATER: Final = "the repository says otherwise"


class Fate(StrEnum):
    """What became of a setting."""

    CARRIED = "carried"
    CHANGED = "changed"  # something else is served in its place
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class SettingFate:
    """One setting of a source, by the file or section that it stands in, and what became of it.

    `wish` is the target that it was taken to, and the value that it has there by its own word.
    """

    section: str
    name: str
    value: str
    fate: Fate
    becomes: str = ""
    reason: str = ""
    wish: tuple[str, str] | None = None

    def to_json(self) -> dict[str, str]:
        """Return the record of the report."""
        return {
            "section": self.section,
            "name": self.name,
            "value": self.value,
            "fate": self.fate.value,
            "becomes": self.becomes,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of the settings of one name; there are three ways.

    With a `target`, which is `llm.ARGUMENT`, `recipe.FIELD` or `MODEL.PARAMETER`, the value goes
    there, changed by `convert` where it is written in another form. The `default` is there anyway:
    it sets nothing, and `kept_as` may say what it comes to.

    With `kept_as` alone there is nothing to set: the PyTorch runtime, or a file of the model's, has
    the `kept` values by itself, and `kept_as` says where. Another value meets the fate `otherwise`.

    With neither the setting is lost, for the `reason`.
    """

    target: str = ""
    reason: str = ""
    convert: Callable[[str], str] | None = None
    default: str | None = None
    kept: tuple[str, ...] | None = None  # None: whatever the value is
    kept_as: str = ""
    otherwise: Fate = Fate.CHANGED


@dataclass(slots=True)
class Ledger:
    """The settings met so far, and what they come to: arguments, the recipe, parameters."""

    settings: list[SettingFate] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)

    def take(self, section: str, record: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
        """Take the settings of a section; those that are null or empty were not set."""
        for name, value in record.items():
            text = as_text(value)
            if text:
                self._judge(section, name, text, rules.get(name, UNKNOWN))

    def note(self, setting: SettingFate) -> None:
        """Take a setting whose fate was found elsewhere."""
        self.settings.append(setting)

    def aim(self, target: str, value: str, reason: str = _LATER) -> None:
        """Set a target; what an earlier section wished there is changed to it, for a reason."""
        became = shown(target, value)
        for place, setting in enumerate(self.settings):
            # By the target: names differ, as max_batch_size of a build and of a config.
            if setting.wish is None or setting.wish[0] != target:
                continue
            if setting.wish[1] != value:
                changed = replace(setting, fate=Fate.CHANGED, becomes=became, reason=reason)
                self.settings[place] = changed
            elif setting.fate is Fate.CHANGED:
                # A third section agrees with the first one.
                carried = replace(setting, fate=Fate.CARRIED, becomes=became, reason="")
                self.settings[place] = carried
        self.targets[target] = value

    def count(self, fate: Fate) -> int:
        """Return how many settings met a fate."""
        return sum(setting.fate is fate for setting in self.settings)

    def of(self, place: str) -> dict[str, str]:
        """Return what is set in a place: `llm`, `recipe` or a model's name."""
        prefix = f"{place}."
        return {
            target.removeprefix(prefix): value
            for target, value in self.targets.items()
            if target.startswith(prefix)
        }

    def _judge(self, section: str, name: str, value: str, rule: Rule) -> None:
        if rule.target:
            try:
                converted = rule.convert(value) if rule.convert else value
            except ValueError as error:
                raise BadInputError(f"{section}: {name} is {value!r} ({error})") from error
            became = shown(rule.target, converted)
            # What is the default anyway is not written down, unless it takes back what an earlier
            # section has set.
            if converted != rule.default or rule.target in self.targets:
                self.aim(rule.target, converted)
            elif rule.kept_as:
                became = rule.kept_as
            wish = (rule.target, converted)
            self.note(SettingFate(section, name, value, Fate.CARRIED, became, rule.reason, wish))
        elif rule.kept_as and (rule.kept is None or value.lower() in rule.kept):
            self.note(SettingFate(section, name, value, Fate.CARRIED, rule.kept_as))
        else:
            fate = rule.otherwise if rule.kept_as else Fate.LOST
            # What a setting was meant to do is done where only its value is another.
            becomes = rule.kept_as if fate is Fate.CHANGED else ""
            self.note(SettingFate(section, name, value, fate, becomes, rule.reason))


UNKNOWN: Final = Rule(reason="nothing of the PyTorch runtime corresponds to it")


def shown(target: str, value: str) -> str:
    """Return a target's value as one would give it to triton-repo."""
    place, _, name = target.partition(".")
    if place != RECIPE:
        return f"{target}={value}"
    option = name.replace("_", "-")
    if value in ("true", "false"):
        return f"--{option}" if value == "true" else f"--no-{option}"
    return f"--{option} {value}"


def as_text(value: Any) -> str:
    """Return a value as a command line has it; empty for what is not set."""
    if value is None or value in ({}, []):
        return ""
    return value if isinstance(value, str) else json.dumps(value)
