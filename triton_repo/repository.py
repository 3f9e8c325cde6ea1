"""A model repository: planned as files, written whole, opened again with its checks."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import Manifest, check_output, kind_of, staged
from minitron_trt.checkpoint import KIND as CHECKPOINT
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, UnsupportedError, UsageError
from minitron_trt.spec import ModelSpec
from minitron_trt.triton_repo import contract
from minitron_trt.triton_repo.model_config import (
    ModelConfig,
    ensemble,
    from_text,
    python_model,
    to_text,
)

KIND: Final = "repository"
MODELS: Final = (
    "preprocessing",
    "tensorrt_llm",
    "postprocessing",
    "ensemble",
    "tensorrt_llm_bls",
)
CONFIG_NAME: Final = "config.pbtxt"
_SOURCES: Final = Path(__file__).with_name("models")
_SHARED_MODULES: Final = ("minitron_text.py", "minitron_requests.py")
_TOKENIZER: Final = "tokenizer"
_CHECKPOINT: Final = "checkpoint"
DEFAULT_MAX_SEQ_LEN: Final = 4096


@dataclass(frozen=True, slots=True)
class ServingRecipe:
    """How to serve: sequences at once, tokens per sequence (prompt and answer), queue."""

    max_batch_size: int = 8
    max_seq_len: int | None = None  # None: the model's, at most DEFAULT_MAX_SEQ_LEN
    max_queue_size: int = 256
    preprocessing_instance_count: int = 1
    add_special_tokens: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in (
            *("max_batch_size", "max_seq_len", "max_queue_size"),
            "preprocessing_instance_count",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected at least 1")

    def seq_len(self, spec: ModelSpec) -> int:
        """Return how many tokens a sequence may have; UsageError beyond the model's positions."""
        if self.max_seq_len is None:
            return min(spec.max_positions, DEFAULT_MAX_SEQ_LEN)
        if self.max_seq_len > spec.max_positions:
            raise UsageError(
                f"max_seq_len {self.max_seq_len} exceeds the {spec.max_positions} positions of "
                "the model; lower --max-seq-len"
            )
        return self.max_seq_len


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """The files of a repository: texts to write and files to link, by their place in it."""

    texts: dict[str, str]
    links: dict[str, Path]

    def write(self, folder: Path) -> None:
        """Write everything below a folder; hard links where the file system can, else copies."""
        for name, text in self.texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for name, source in self.links.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(source.resolve(), path)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def plan_reference(checkpoint: Checkpoint, recipe: ServingRecipe) -> RepositoryPlan:
    """Lay out a repository that serves a checkpoint with the reference runtime.

    BadInputError when the checkpoint has no tokenizer, UsageError when the recipe does not fit it.
    """
    if not checkpoint.tokenizer_files:
        raise BadInputError(
            f"{checkpoint.folder} has no tokenizer, which serving text needs; put tokenizer.json "
            "and tokenizer_config.json into the model folder and convert again"
        )
    texts = {
        f"{config.name}/{CONFIG_NAME}": to_text(config) for config in _configs(checkpoint, recipe)
    }
    runtime = {"tensorrt_llm": "tensorrt_llm_reference.py"}
    for name in MODELS:
        if name != "ensemble":
            source = _SOURCES / runtime.get(name, f"{name}.py")
            texts[f"{name}/1/model.py"] = source.read_text(encoding="utf-8")
            for module in _SHARED_MODULES:
                texts[f"{name}/1/{module}"] = (_SOURCES / module).read_text(encoding="utf-8")
    # Triton wants a version folder, also where nothing lies in it.
    texts["ensemble/1/.keep"] = ""
    links = {
        f"{name}/1/{_TOKENIZER}/{path.name}": path
        for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls")
        for path in checkpoint.tokenizer_files
    }
    for path in checkpoint.folder.iterdir():
        links[f"tensorrt_llm/1/{_CHECKPOINT}/{path.name}"] = path
    return RepositoryPlan(texts, links)


def _configs(checkpoint: Checkpoint, recipe: ServingRecipe) -> tuple[ModelConfig, ...]:
    batch = recipe.max_batch_size
    tokenizer = {"tokenizer_dir": _TOKENIZER}
    encoding = {
        "add_special_tokens": json.dumps(recipe.add_special_tokens),
        "end_ids": json.dumps(list(checkpoint.tokens.eos_ids)),
    }
    decoding = {"skip_special_tokens": json.dumps(recipe.skip_special_tokens)}
    runtime = {
        "gpt_model_path": _CHECKPOINT,
        "gpt_model_type": "inflight_fused_batching",
        "max_batch_size": str(batch),
        "max_seq_len": str(recipe.seq_len(checkpoint.spec)),
        "max_queue_size": str(recipe.max_queue_size),
    }
    # A request in flight holds a thread, queued ones too.
    relay = {"max_requests": str(batch + recipe.max_queue_size)}
    return (
        python_model(
            "preprocessing",
            contract.PREPROCESSING,
            tokenizer | encoding,
            max_batch_size=batch,
            instances=recipe.preprocessing_instance_count,
        ),
        python_model(
            "tensorrt_llm", contract.TENSORRT_LLM, runtime, max_batch_size=batch, decoupled=True
        ),
        python_model(
            "postprocessing", contract.POSTPROCESSING, tokenizer | decoding, max_batch_size=batch
        ),
        ensemble(max_batch_size=batch),
        python_model(
            "tensorrt_llm_bls",
            contract.TEXT,
            tokenizer | encoding | decoding | relay,
            max_batch_size=batch,
            decoupled=True,
        ),
    )


def emit_repository(
    artifact: Path, output: Path, recipe: ServingRecipe, *, overwrite: bool = False
) -> ModelRepository:
    """Write a model repository for a checkpoint, whole or not at all."""
    check_output(output, overwrite=overwrite)
    kind = kind_of(artifact)
    if kind != CHECKPOINT:
        raise UnsupportedError(
            f"{artifact} is of kind {kind!r}; the reference runtime serves a checkpoint: "
            "run minitron-trt convert first"
        )
    checkpoint = Checkpoint.open(artifact)
    plan = plan_reference(checkpoint, recipe)
    with staged(output, overwrite=overwrite) as scratch:
        plan.write(scratch)
        facts = {"runtime": "reference", "recipe": asdict(recipe), "models": list(MODELS)}
        Manifest(KIND, {"path": str(artifact)}, facts).write(scratch)
        ModelRepository.open(scratch)
    return ModelRepository.open(output)


@dataclass(frozen=True, slots=True)
class ModelRepository:
    """An opened repository: its manifest's facts and the parsed config of each model."""

    folder: Path
    runtime: str
    configs: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> ModelRepository:
        """Read a repository and parse every config back; BadInputError names the file."""
        manifest = Manifest.read(folder, KIND)
        configs = {}
        for name in manifest.facts["models"]:
            path = folder / name / CONFIG_NAME
            config = from_text(path.read_text(encoding="utf-8"), str(path))
            if config.name != name:
                raise BadInputError(f"{path} names the model {config.name!r}; expected {name!r}")
            configs[name] = config
        return cls(folder, str(manifest.facts["runtime"]), configs)
