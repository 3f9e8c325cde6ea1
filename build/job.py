"""One build: what is built from which checkpoint, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.build.containers import container_for
from minitron_trt.build.recipe.engine_memory import checkpoint_bytes
from minitron_trt.build.recipe.engine_recipe import EngineRecipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import size_text
from minitron_trt.host.machine import memory_bytes

BUILDER_BYTES: Final = 2 << 30
"""What trtllm-build itself takes, besides two copies of a rank's weights."""
LOG_NAME: Final = "build.log"


@dataclass(frozen=True, slots=True)
class BuildJob:
    """A recipe, the request that it answers, its folders and how to run it."""

    recipe: EngineRecipe
    request: BuildRequest
    checkpoint: Checkpoint
    output: Path
    overwrite: bool = False
    timeout_s: float | None = None
    timing_folder: Path | None = None
    image: str | None = None

    @property
    def image_name(self) -> str:
        """Return the image to build in: the requested one, or NVIDIA's with the TensorRT-LLM."""
        return self.image or container_for(self.recipe.version).image

    @property
    def workers(self) -> int:
        """Return how many ranks are built at once, each on a GPU of its own."""
        return self.request.workers

    @property
    def log_file(self) -> Path:
        """Return where the compiler's log lies while it runs, and after it failed."""
        path = self.output.resolve()
        return path.with_name(f"{path.name}.{LOG_NAME}")

    @property
    def host_bytes(self) -> int:
        """Return a forecast of the host's memory: twice the weights and the builder, per worker."""
        rank = checkpoint_bytes(self.recipe.model) // self.recipe.model.parallelism.world_size
        return self.workers * (2 * rank + BUILDER_BYTES)

    @property
    def memory_words(self) -> str:
        """Return the forecast beside what this machine has."""
        have = size_text(memory_bytes())
        return f"about {size_text(self.host_bytes)} are needed, the machine has {have}"
