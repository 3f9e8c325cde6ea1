"""TensorRT's timing cache, kept per architecture and version: a second build is shorter."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.build.job import BuildJob
from minitron_trt.errors import OutputError
from minitron_trt.outputs import make_folder

log = logging.getLogger(__name__)

TIMING_NAME: Final = "model.cache"
"""The file that a build writes its timings to, beside the engine, until they are kept."""


@dataclass(frozen=True, slots=True)
class TimingCache:
    """The cache file of one SM and compiler version in a folder."""

    folder: Path
    sm: int
    version: str

    @classmethod
    def of(cls, job: BuildJob) -> TimingCache | None:
        """Return the cache of a job's SM and version, if one is kept."""
        if job.timing_folder is None:
            return None
        return cls(job.timing_folder, job.recipe.target.sm, job.recipe.version)

    @property
    def path(self) -> Path:
        """Return the file; other architectures' and versions' timings would be rejected."""
        return self.folder / f"sm{self.sm}-trtllm-{self.version}.timing"

    def arguments(self, source: Path | str, target: Path | str) -> list[str]:
        """Return the compiler's arguments to read the cache and write a new one."""
        known = [f"--input_timing_cache={source}"] if self.path.is_file() else []
        return [*known, f"--output_timing_cache={target}"]

    def keep(self, written: Path) -> None:
        """Replace the cache by a finished build's, in one step; nothing when there is none.

        Where it cannot be kept, that is a warning and no error: the engine is whole without it.
        """
        if not written.is_file():
            return
        # Beside the cache, for a rename in one step: builds that share it read whole files only.
        scratch = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            make_folder(self.folder)
            shutil.move(written, scratch)
            scratch.replace(self.path)
        except (OSError, OutputError) as error:
            log.warning("the timing cache is not kept (%s)", error)
            for left in (written, scratch):
                with contextlib.suppress(OSError):
                    left.unlink()
