"""What a repository says of the server that runs it: image, arguments, ranks, bytes, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import MANIFEST_NAME, REPOSITORY, Manifest
from minitron_trt.build.compatibility import check_engine, refuse_misfits
from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_memory import KV_FRACTION, Forecast, forecast_memory
from minitron_trt.convert.source.model_folder import folder_formats, folder_spec
from minitron_trt.errors import BadInputError, UnsupportedError, UsageError
from minitron_trt.gpus import Target, check_support, find_target
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS
from minitron_trt.spec import Parallelism
from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
    TENSORRT_LLM_DRAFT,
)
from minitron_trt.triton_repo.runtimes.llm_arguments import LlmArguments
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.serving.command_line import command_line, is_multi_model
from minitron_trt.triton_repo.serving.docker_launch import (
    choose_image,
    container_environment,
    program_in,
)
from minitron_trt.triton_repo.serving.model_limits import (
    open_engine,
    open_llm,
    read_limits,
)
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving.server_options import ANYWHERE, Endpoints, ServerOptions
from minitron_trt.triton_repo.serving_recipe import MOUNT

ENDPOINTS: Final = Endpoints(host=ANYWHERE, metrics_host=ANYWHERE)
"""Where a server listens in a container of its own; the ports are Triton's."""
CLOSED: Final = "Closed= -"
"""The header that closed calls ask for, which nobody can send: HTTP drops the space before a value.

A value of nothing but a space would be the one that Triton reads in a header without any.
"""
CONNECTION_AGE_S: Final = 60
"""How long a gateway goes on with the servers that there were when it connected."""
_TEXT_MODELS: Final = (PREPROCESSING, POSTPROCESSING, TENSORRT_LLM_BLS)
# The LLM class's own defaults, where model.yaml does not say them.
_LLM_MAX_NUM_TOKENS: Final = 8192
_TOKENS_PER_BLOCK: Final = 32


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """What each rank takes of its GPU; the cache is that of the longest sequence, once."""

    sm: int
    gpu: str
    weights_bytes: int
    activation_bytes: int
    reserve_bytes: int
    longest_bytes: int
    sequences: int

    @property
    def needed_bytes(self) -> int:
        """Return the memory that a GPU must have for one longest sequence to run."""
        cache = ceil(self.longest_bytes / KV_FRACTION)
        return self.weights_bytes + self.activation_bytes + self.reserve_bytes + cache


@dataclass(frozen=True, slots=True)
class ServedFacts:
    """A repository as its server sees it; `gpu` is None where no GPU is needed.

    `argv` and `environment` are those of `serve --dry-run` in the image; `processes` are the Python
    processes that handle text, by model.
    """

    repository: str
    runtime: str
    image: str
    image_why: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    mount: str
    tp: int
    pp: int
    repository_bytes: int
    batch: int
    max_seq_len: int
    vocab: int
    processes: Mapping[str, int]
    gpu: GpuNeed | None = None
    tensorrt_llm: str | None = None

    @property
    def ranks(self) -> int:
        """Return how many GPUs share the model; 1 without any."""
        return self.tp * self.pp

    def to_json(self) -> dict[str, Any]:
        """Return the record that a manifest keeps."""
        return asdict(self)


def read_facts(
    repository: Path,
    *,
    image: str | None,
    gpu: str | None,
    drain_s: int,
    endpoints: Endpoints = ENDPOINTS,
    connection_age_s: int | None = CONNECTION_AGE_S,
) -> ServedFacts:
    """Read a repository that this tool wrote, whose server will have these endpoints.

    UnsupportedError where its engine cannot run on the GPU, UsageError where a GPU or an image must
    be named.
    """
    served = ServedRepository.open(repository)
    folder = served.folder
    if not (folder / MANIFEST_NAME).is_file():
        raise BadInputError(
            f"{repository} has no {MANIFEST_NAME}; expected a repository that triton-repo wrote"
        )
    options = ServerOptions(
        endpoints, closed=CLOSED, drain_s=drain_s, connection_age_s=connection_age_s
    )
    _check_is_one_model(served, options)
    if served.runtime != TRTLLM:
        # Only engines name the place where they will be mounted.
        served = replace(served, mount=Path(MOUNT))
    chosen, why = _image(served, image)
    manifest = Manifest.read_unchecked(folder, REPOSITORY)
    sizes = _READERS[served.runtime](served, gpu)
    limits = read_limits(served)
    return ServedFacts(
        repository=str(folder),
        runtime=served.runtime,
        image=chosen,
        image_why=why,
        argv=command_line(program_in(chosen, served), served, options),
        environment=container_environment(served, options),
        mount=str(served.mount),
        repository_bytes=sum(manifest.files.values()),
        processes=_processes(served.configs),
        batch=limits.batch,
        max_seq_len=limits.max_seq_len,
        vocab=limits.spec.vocab,
        tensorrt_llm=served.trtllm,
        **sizes,
    )


def _check_is_one_model(served: ServedRepository, options: ServerOptions) -> None:
    """Refuse, as UnsupportedError, a repository whose memory is more than one model's."""
    if is_multi_model(served, options):
        raise UnsupportedError(f"{served.folder} has several engines; deploy them one by one")
    if TENSORRT_LLM_DRAFT in served.configs:
        raise UnsupportedError(
            f"{served.folder} has a draft model, whose memory is in no forecast; write it without "
            "--draft"
        )


def _image(served: ServedRepository, image: str | None) -> tuple[str, str]:
    if served.runtime == REFERENCE:
        if image is None:
            raise UsageError(
                f"{served.folder} is for the reference runtime, whose image must have "
                "minitron-trt[reference] beside tritonserver; name yours: --image"
            )
        return image, "named by --image"
    chosen = choose_image(served, image)
    if image is not None:
        return chosen, "named by --image"
    return chosen, f"the newest with the repository's TensorRT-LLM {served.trtllm}"


def _processes(configs: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: sum(group.count or 1 for group in configs[name].instance_group) or 1
        for name in _TEXT_MODELS
        if name in configs
    }


def _of_engine(served: ServedRepository, gpu: str | None) -> dict[str, Any]:
    """Return what an engine says; what `check` finds against the GPU ends it."""
    path, engine = open_engine(served)
    target = _target(served, gpu, engine.sm)
    refuse_misfits(check_engine(engine, target, gpus=None, container=None).findings, str(path))
    return {
        "tp": engine.model.parallelism.tp,
        "pp": engine.model.parallelism.pp,
        "gpu": _need(engine.forecast(target.gpu), target, engine.limits.max_seq_len, engine.sm),
    }


def _of_llm(served: ServedRepository, gpu: str | None) -> dict[str, Any]:
    """Return what a Hugging Face folder says; it fits any GPU, so one must be named."""
    target = _target(served, gpu, None)
    folder, arguments = open_llm(served)
    tp, pp = arguments.tensor_parallel_size, arguments.pipeline_parallel_size
    parallelism = Parallelism(tp, pp)
    model = _llm_model(arguments, folder, parallelism)
    parallelism.check(model.spec)
    check_support(model.precision, target)
    if model.kv_cache:
        check_support(KV_CACHES[model.kv_cache].feature, target)
    limits = read_limits(served)
    files = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    weights = sum(path.stat().st_size for path in files)
    forecast = forecast_memory(
        model,
        target.gpu,
        max_num_tokens=arguments.max_num_tokens or _LLM_MAX_NUM_TOKENS,
        sequences=limits.batch,
        tokens_per_block=_TOKENS_PER_BLOCK,
        weights=ceil(weights / parallelism.world_size),
    )
    need = _need(forecast, target, limits.max_seq_len, None)
    if need.needed_bytes > forecast.gpu_bytes:
        raise UnsupportedError(
            f"{folder} needs {need.needed_bytes / 1e9:.1f} GB of each GPU, {target.gpu.name} has "
            f"{forecast.gpu_bytes / 1e9:.1f} GB; make the repository again with more --tp"
        )
    return {"tp": tp, "pp": pp, "gpu": need}


def _llm_model(arguments: LlmArguments, folder: Path, parallelism: Parallelism) -> EngineModel:
    """Return the model of a folder; a format that is none of ours counts as bf16."""
    stated = folder_formats(folder)
    dtype = arguments.kv_cache_config.dtype if arguments.kv_cache_config else "auto"
    kv_cache = stated.kv_cache if dtype == "auto" else dtype
    model = EngineModel(
        name=folder.name,
        spec=folder_spec(folder),
        kv_cache=kv_cache if kv_cache in KV_CACHES else None,
        parallelism=parallelism,
        sharded=True,
    )
    return model.stored_as(stated.weights) if stated.weights in PRECISIONS else model


def _of_reference(served: ServedRepository, gpu: str | None) -> dict[str, Any]:
    """Return what a checkpoint for the reference runtime says, which computes on processors."""
    if gpu is not None:
        raise UsageError("--gpu is for engines and llmapi; the reference runtime has none")
    parameters = served.configs[TENSORRT_LLM].parameters
    if "gpu_device_ids" in parameters:
        raise UnsupportedError(
            f"{served.folder} is for the reference runtime on GPU "
            f"{parameters['gpu_device_ids'].string_value}, and deploy asks for no GPU for that "
            "runtime; make the repository again without tensorrt_llm.gpu_device_ids"
        )
    return {"tp": 1, "pp": 1}


_READERS: Final = {TRTLLM: _of_engine, LLMAPI: _of_llm, REFERENCE: _of_reference}


def _target(served: ServedRepository, gpu: str | None, sm: int | None) -> Target:
    if gpu is not None:
        return find_target(gpu)
    if sm is None:
        raise UsageError(
            f"{served.folder} does not say which GPU it is for; name one: --gpu H100, say"
        )
    return find_target(f"sm{sm}")


def _need(forecast: Forecast, target: Target, seq_len: int, sm: int | None) -> GpuNeed:
    return GpuNeed(
        sm=target.sm if sm is None else sm,
        gpu=target.gpu.name,
        weights_bytes=forecast.weights_bytes,
        activation_bytes=forecast.activation_bytes,
        reserve_bytes=forecast.reserve_bytes,
        longest_bytes=seq_len * forecast.kv_bytes_per_token,
        sequences=forecast.sequences(seq_len),
    )
