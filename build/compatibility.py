"""Will an engine load there? Its architecture, versions, memory and ranks against a place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from minitron_trt.build.containers import (
    Container,
    containers_with,
    same_version,
)
from minitron_trt.build.engine import TRTLLM, Engine
from minitron_trt.build.recipe.engine_memory import KV_FRACTION
from minitron_trt.build.security_bulletins import holes_of
from minitron_trt.console import size_text
from minitron_trt.errors import UnsupportedError
from minitron_trt.gpus import GPUS, Target, support
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.verification_record import verification_facts


@dataclass(frozen=True, slots=True)
class LoadFault:
    """What may keep an engine from loading: whether it fits (None: cannot be known), what to do."""

    name: str
    fits: bool | None
    found: str
    remedy: str = ""


def all_fit(findings: Iterable[LoadFault]) -> bool | None:
    """Return whether every finding fits; None when something could not be known."""
    fits = [finding.fits for finding in findings]
    return False if False in fits else None if None in fits else True


def refuse_misfits(findings: Iterable[LoadFault], problem: str) -> None:
    """Raise UnsupportedError, which begins with the problem, for the first that does not fit."""
    for finding in findings:
        if finding.fits is False:
            raise UnsupportedError(f"{problem}: {finding.found}; {finding.remedy}")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Everything that was compared; `holes` says what is known against the image's Triton."""

    engine: Engine
    findings: tuple[LoadFault, ...]
    images: tuple[str, ...]
    holes: str | None = None

    @property
    def loads(self) -> bool | None:
        """Return whether the engine will load; None when something could not be known."""
        return all_fit(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        engine = self.engine
        return {
            "engine": str(engine.folder),
            "compiler": engine.compiler,
            "compiler_version": engine.compiler_version,
            "sm": engine.sm,
            "tp": engine.model.parallelism.tp,
            "pp": engine.model.parallelism.pp,
            "loads": self.loads,
            "findings": [asdict(finding) for finding in self.findings],
            "images": list(self.images),
            "holes": self.holes,
            **verification_facts(engine.verification),
        }


def check_engine(
    engine: Engine, target: Target | None, gpus: int | None, container: Container | None
) -> LoadReport:
    """Compare an engine with a GPU, a number of them, and an image; None leaves one out."""
    findings: list[LoadFault] = []
    if target is not None:
        findings += [_architecture(engine, target), _memory(engine, target)]
    if gpus is not None:
        findings.append(_ranks(engine, gpus))
    if container is not None:
        findings += _versions(engine, container)
    holes = holes_of(container.tag) if container else None
    return LoadReport(engine, tuple(findings), _fitting_images(engine), holes)


def _architecture(engine: Engine, target: Target) -> LoadFault:
    name, both = "architecture", f"engine for SM{engine.sm}, {target.label}"
    if engine.sm is None:
        return LoadFault(
            name,
            fits=None,
            found="the engine does not say which architecture it is for",
            remedy="give the one it was built on with --sm",
        )
    if engine.sm == target.sm:
        return LoadFault(name, fits=True, found=both)
    able = ", ".join(gpu.name for gpu in GPUS if gpu.sm == engine.sm)
    where = f"SM{engine.sm} is {able}" if able else f"no known GPU is SM{engine.sm}"
    generation = target.architecture
    # A generation's name stands for its first SM.
    arch = generation.name if target.sm == generation.sms[0] else f"sm{target.sm}"
    again = f"build again with --arch {arch}"
    precision = engine.model.precision
    if precision in PRECISIONS and not (verdict := support(precision, target)).supported:
        # Building is not enough where the weights' format does not run.
        again = f"convert to {' or '.join(verdict.alternatives)} and {again}"
    return LoadFault(name, fits=False, found=both, remedy=f"{where}; or {again}")


def _memory(engine: Engine, target: Target) -> LoadFault:
    forecast, limits = engine.forecast(target.gpu), engine.limits
    tokens = limits.max_seq_len
    if engine.compiler != TRTLLM:
        # Its cache is one piece, with a row of full length for each sequence.
        tokens *= limits.max_batch_size
    # What the pool must offer, before the share that TensorRT-LLM leaves free.
    missing = tokens * forecast.kv_bytes_per_token - forecast.kv_pool_bytes
    missing += max(-forecast.free_bytes, 0)
    held = (
        f"engine {size_text(forecast.weights_bytes)}, activations and runtime about "
        f"{size_text(forecast.activation_bytes + forecast.reserve_bytes)} of "
        f"{target.gpu.name}'s {size_text(forecast.gpu_bytes)}"
    )
    if missing <= 0:
        return LoadFault(
            "memory",
            fits=True,
            found=f"{held}; {forecast.kv_tokens:,} tokens of KV cache, "
            f"{forecast.sequences(limits.max_seq_len):,} sequences of {limits.max_seq_len}",
        )
    # Of the memory that a larger GPU has more, the KV cache gets this share only.
    needed = target.gpu.memory_bytes + missing / KV_FRACTION
    able = [gpu for gpu in GPUS if gpu.memory_bytes >= needed]
    fitting = [gpu.name for gpu in able if gpu.sm == engine.sm]
    return LoadFault(
        "memory",
        fits=False,
        found=f"{held}; {size_text(missing)} are missing for {tokens} cached tokens",
        remedy=(f"{', '.join(fitting)} would hold it; or " if fitting else "")
        + "build with a smaller --max-seq-len or --max-batch-size, or more --tp ranks",
    )


def _ranks(engine: Engine, gpus: int) -> LoadFault:
    parallelism = engine.model.parallelism
    need = parallelism.world_size
    both = f"tp {parallelism.tp} x pp {parallelism.pp} on {gpus} GPU(s)"
    if need <= gpus:
        return LoadFault("ranks", fits=True, found=both)
    return LoadFault(
        "ranks",
        fits=False,
        found=both,
        remedy=f"use {need} GPUs, or convert with fewer ranks and build again",
    )


def _versions(engine: Engine, container: Container) -> Iterator[LoadFault]:
    name = "TensorRT-LLM"
    if engine.compiler != TRTLLM:
        yield LoadFault(
            name,
            fits=False,
            found=f"engine of {engine.compiler} {engine.compiler_version}, which {container.tag} "
            "does not run",
            remedy="build with --compiler trtllm for NVIDIA's images",
        )
        return
    version = engine.compiler_version
    both = f"engine of {version}, {container.tag} has {container.trtllm}"
    if version is None:
        yield LoadFault(name, fits=None, found="the engine does not say which version built it")
    elif same_version(version, container.trtllm):
        yield LoadFault(name, fits=True, found=both)
    else:
        tags = ", ".join(fitting.tag for fitting in containers_with(version))
        way = f"use image {tags}; or " if tags else f"no image has {version}; "
        yield LoadFault(
            name,
            fits=False,
            found=both,
            remedy=f"{way}build again with --trtllm-version {container.trtllm}",
        )
    if engine.tensorrt and container.tensorrt:
        same = same_version(engine.tensorrt, container.tensorrt)
        yield LoadFault(
            "TensorRT",
            fits=same,
            found=f"engine of {engine.tensorrt}, {container.tag} has {container.tensorrt}",
            remedy="" if same else "build in the image that serves",
        )


def _fitting_images(engine: Engine) -> tuple[str, ...]:
    if engine.compiler != TRTLLM or engine.compiler_version is None:
        return ()
    return tuple(container.image for container in containers_with(engine.compiler_version))
