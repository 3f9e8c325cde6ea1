"""The options of a command that may read a model on the Hugging Face hub."""

from __future__ import annotations

from typing import Final

import cloup

HUB_OPTIONS: Final = cloup.option_group(
    "Hugging Face hub",
    cloup.option("--revision", help="Branch, tag or commit of a hub id"),
    cloup.option("--token", envvar="HF_TOKEN", help="Hub token, for gated models  [env: HF_TOKEN]"),
)
"""A decorator: the command gets `revision` and `token`."""
