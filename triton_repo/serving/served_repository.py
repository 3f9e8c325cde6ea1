"""What a server must know of a repository, one that this tool wrote or any other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.artifacts import CONFIG_NAME, MANIFEST_NAME, REPOSITORY, kind_of
from minitron_trt.build.containers import container_for, same_version
from minitron_trt.convert.source.hub import HUB_ID
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT, TRTLLM_BACKEND, from_text
from minitron_trt.triton_repo.model_repository import ModelRepository
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, TRTLLM, WITH_TENSORRT_LLM

if TYPE_CHECKING:
    from minitron_trt.build.engine import Engine

OTHER: Final = "other"
"""Runtime of a repository that this tool did not write and that has no TensorRT-LLM in it."""

_CONFIGS: Final = f"*/{CONFIG_PBTXT}"
# What lies in a folder of a model: Hugging Face's, llama.cpp's, NeMo's.
_OF_MODELS: Final = (CONFIG_NAME, "*.gguf", "*.nemo", "model_config.yaml")
_ENGINE: Final = "gpt_model_path"
# Parameters of TensorRT-LLM's models that name files beside or outside the repository.
PATHS: Final = (
    _ENGINE,
    "encoder_model_path",
    "tokenizer_dir",
    "engine_dir",
    "lora_prefetch_dir",
    "multimodal_model_path",
    "xgrammar_tokenizer_info_path",
)


@dataclass(frozen=True, slots=True)
class ServedRepository:
    """An opened repository: its models, what generates their tokens, and over how many ranks.

    `generators` are the models that every rank loads. `mount` is where the configs say that the
    repository lies; `outside` are the paths outside of it that they name. `max_request_bytes` is
    how large a request over HTTP may be, None where nothing says so.
    """

    folder: Path
    runtime: str
    configs: Mapping[str, Any]
    generators: tuple[str, ...]
    world_size: int
    mount: Path
    outside: tuple[Path, ...] = ()
    trtllm: str | None = None
    image: str | None = None
    max_request_bytes: int | None = None

    @classmethod
    def open(cls, folder: Path) -> ServedRepository:
        """Read a repository; BadInputError names the file that is wrong."""
        # Triton and docker want absolute paths. Unlike resolve(), realpath takes a circle of links.
        folder = Path(os.path.realpath(folder))
        if (folder / MANIFEST_NAME).is_file() or not folder.is_dir():
            return cls._open_by_manifest(folder)
        return cls._open_by_configs(folder)

    @classmethod
    def _open_by_manifest(cls, folder: Path) -> ServedRepository:
        repository = ModelRepository.open(folder)
        facts = repository.facts
        mount = Path(facts.mount or folder)
        return cls(
            folder=folder,
            runtime=repository.runtime,
            configs=repository.configs,
            generators=(TENSORRT_LLM,),
            world_size=facts.world_size,
            mount=mount,
            outside=_outside(repository.configs, folder, mount),
            trtllm=facts.tensorrt_llm,
            image=facts.image,
            max_request_bytes=facts.max_request_bytes,
        )

    @classmethod
    def _open_by_configs(cls, folder: Path) -> ServedRepository:
        configs = {
            path.parent.name: from_text(read_text(path), str(path))
            for path in sorted(folder.glob(_CONFIGS))
        }
        if not configs:
            raise BadInputError(
                f"{folder} has no MODEL/{CONFIG_PBTXT}; expected a Triton repository"
            )
        # Upstream's tensorrt_llm runs engines with the python backend, too (triton_backend). There
        # a relative path is that of a checkpoint, in a repository of ours that lost its manifest.
        engines = {
            name: Path(path)
            for name, path in _parameters(configs, _ENGINE)
            if configs[name].backend == TRTLLM_BACKEND or Path(path).is_absolute()
        }
        if engines:
            opened = [_open_engine(name, path) for name, path in engines.items()]
            return cls(
                folder=folder,
                runtime=TRTLLM,
                configs=configs,
                generators=tuple(engines),
                world_size=max(engine.model.parallelism.world_size for engine in opened),
                mount=folder,
                outside=_outside(configs, folder, folder),
                trtllm=opened[0].compiler_version,
            )
        return _open_without_engine(folder, configs)

    @property
    def models(self) -> tuple[str, ...]:
        """Return the names of the models."""
        return tuple(self.configs)

    def find_image(self) -> str:
        """Return the image that carries the engine's TensorRT-LLM; UnsupportedError without one."""
        if self.image is None and self.trtllm is None:
            raise UnsupportedError(
                f"{self.folder} does not say which TensorRT-LLM it is for; name an image: --image"
            )
        return self.image or container_for(str(self.trtllm)).image

    def check_version(self, trtllm: str, where: str) -> None:
        """Raise UnsupportedError when an engine is of another TensorRT-LLM than the one there."""
        if self.runtime == TRTLLM and self.trtllm and not same_version(self.trtllm, trtllm):
            raise UnsupportedError(
                f"the engine is of TensorRT-LLM {self.trtllm}, {where} has {trtllm}, and they must "
                "be the same: use another image or build the engine again"
            )


def _open_without_engine(folder: Path, configs: Mapping[str, Any]) -> ServedRepository:
    # It brings PyYAML, which only repositories of others without an engine need.
    from minitron_trt.triton_repo.runtimes.llm_arguments import (
        MODEL_YAML,
        LlmPlacement,
        read_llm_arguments,
    )

    outside = _outside(configs, folder, folder)
    for name in configs:
        path = folder / name / "1" / MODEL_YAML
        if path.is_file():
            arguments = read_llm_arguments(path, LlmPlacement)
            model = Path(arguments.model)
            # Others lie in the repository, or are names of the hub's.
            is_outside = model.is_absolute() and model.exists()
            return ServedRepository(
                folder=folder,
                runtime=LLMAPI,
                configs=configs,
                generators=(name,),
                world_size=arguments.tensor_parallel_size * arguments.pipeline_parallel_size,
                mount=folder,
                outside=(*outside, model) if is_outside else outside,
            )
    return ServedRepository(
        folder=folder,
        runtime=OTHER,
        configs=configs,
        generators=(),
        world_size=1,
        mount=folder,
        outside=outside,
    )


def _parameters(configs: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """Yield model and value where a parameter is set; a placeholder counts as unset upstream."""
    for name, config in configs.items():
        value = config.parameters[key].string_value if key in config.parameters else ""
        if value and not value.startswith("${"):
            yield name, value


def _open_engine(model: str, path: Path) -> Engine:
    if not path.is_dir():
        raise BadInputError(
            f"{model}/{CONFIG_PBTXT}: {_ENGINE} is {str(path)!r}, which is not a folder here; "
            "serve where it is, or put the engine there"
        )
    # Only repositories of others are read by their engines, and it is much to import.
    from minitron_trt.build.engine import Engine

    return Engine.open(path)


def _outside(configs: Mapping[str, Any], folder: Path, mount: Path) -> tuple[Path, ...]:
    named = {Path(value) for key in PATHS for _, value in _parameters(configs, key)}
    return tuple(
        path
        for path in sorted(named)
        if path.is_absolute()
        and path.exists()
        and not path.is_relative_to(mount)
        and not path.resolve().is_relative_to(folder)
    )


def runs_anywhere(runtime: str) -> bool:
    """Say whether a tritonserver without TensorRT-LLM can serve a runtime."""
    return runtime not in WITH_TENSORRT_LLM


def names_model(source: str) -> bool:
    """Say whether a name stands for a model, or what was made of one, and not for a repository.

    Nothing is downloaded: what is not here and has the form of a hub id counts as one.
    """
    path = Path(source)
    if not path.is_dir():
        return path.is_file() or HUB_ID.fullmatch(source) is not None
    if (path / MANIFEST_NAME).is_file():
        return kind_of(path) != REPOSITORY
    return any(any(path.glob(name)) for name in _OF_MODELS) and not any(path.glob(_CONFIGS))
