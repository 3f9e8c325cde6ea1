"""The files that every repository has, whatever generates its tokens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import GENERATION_CONFIG
from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.errors import BadInputError
from minitron_trt.spec import SpecialTokens
from minitron_trt.triton_repo.contract.ensemble_steps import ensemble_steps
from minitron_trt.triton_repo.contract.tensors import (
    POSTPROCESSING,
    PREPROCESSING,
    ElementTypes,
    text_model,
)
from minitron_trt.triton_repo.model_config import (
    ModelConfig,
    Queue,
    ensemble,
    python_model,
    to_text,
)
from minitron_trt.triton_repo.parameters import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

MODELS: Final = (
    "preprocessing",
    "tensorrt_llm",
    "postprocessing",
    "ensemble",
    "tensorrt_llm_bls",
)
CONFIG_NAME: Final = "config.pbtxt"
MOST_BLS_INSTANCES: Final = {REFERENCE: 2, TRTLLM: 16, LLMAPI: 16}
"""How many tensorrt_llm_bls has unless told: each is a process with a tokenizer of its own."""
_SOURCES: Final = Path(__file__).with_name("models")
_TEXT_MODELS: Final = ("preprocessing", "postprocessing", "tensorrt_llm_bls")
_TOKENIZER: Final = "tokenizer"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What generates the tokens: the model `tensorrt_llm`, and what the others depend on."""

    name: str
    config: ModelConfig
    texts: Mapping[str, str]  # by their place in the version folder
    links: Mapping[str, Path]
    tokenizer: tuple[Path, ...]
    end_ids: tuple[int, ...]
    vocab_size: int
    types: ElementTypes
    facts: Mapping[str, Any]  # for whoever serves it

    @property
    def ours(self) -> bool:
        """Return whether it knows a stream's id, which TensorRT-LLM's own model does not."""
        return self.name != TRTLLM


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """The files of a repository: texts to write and files to link, by their place in it."""

    texts: Mapping[str, str]
    links: Mapping[str, Path]

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


def plan_repository(runtime: Runtime, recipe: ServingRecipe) -> RepositoryPlan:
    """Lay the models of text out around a runtime."""
    configs = (*_text_configs(runtime, recipe), runtime.config)
    texts = {f"{config.name}/{CONFIG_NAME}": to_text(config) for config in configs}
    for name in _TEXT_MODELS:
        texts |= _python_sources(name, source=name)
    if runtime.ours:
        source = f"tensorrt_llm_{runtime.name}"
        texts |= _python_sources("tensorrt_llm", source=source, subpackage=runtime.name)
    texts |= {f"tensorrt_llm/1/{name}": text for name, text in runtime.texts.items()}
    for name in ("ensemble", "tensorrt_llm"):
        # Triton wants a version folder, also where nothing lies in it.
        texts[f"{name}/1/.keep"] = ""
    links = {
        f"{name}/1/{_TOKENIZER}/{path.name}": path
        for name in _TEXT_MODELS
        for path in runtime.tokenizer
    }
    links |= {f"tensorrt_llm/1/{name}": path for name, path in runtime.links.items()}
    return RepositoryPlan(texts, links)


def _python_sources(model: str, *, source: str, subpackage: str | None = None) -> dict[str, str]:
    """Return a model.py and the package of shared modules beside it, by their place.

    Of the package's own subpackages, which belong to the runtimes, a model gets the one it names.
    """
    package = _SOURCES / "minitron_models"
    paths = [*package.glob("*.py")]
    if subpackage is not None:
        paths += (package / subpackage).glob("*.py")
    places = {path.relative_to(_SOURCES): path for path in paths}
    places[Path("model.py")] = _SOURCES / source / "model.py"
    return {
        f"{model}/1/{place}": path.read_text(encoding="utf-8")
        for place, path in sorted(places.items())
    }


def _text_configs(runtime: Runtime, recipe: ServingRecipe) -> tuple[ModelConfig, ...]:
    batch = runtime.config.max_batch_size
    encoding = {
        "tokenizer_dir": _TOKENIZER,
        "add_special_tokens": json.dumps(recipe.add_special_tokens),
        "apply_chat_template": json.dumps(recipe.apply_chat_template),
        "exclude_input_in_output": json.dumps(recipe.exclude_input_in_output),
        "end_ids": json.dumps(list(runtime.end_ids)),
        "vocab_size": str(runtime.vocab_size),
    }
    decoding = {
        "tokenizer_dir": _TOKENIZER,
        "skip_special_tokens": json.dumps(recipe.skip_special_tokens),
    }
    # Whether tensorrt_llm says why an answer ended.
    relay = {"finish_reason": json.dumps(runtime.ours)}
    signature = text_model(runtime.types)
    steps = ensemble_steps(runtime.types, ours=runtime.ours)
    return (
        python_model(
            "preprocessing",
            PREPROCESSING,
            {**encoding, **recipe.of("preprocessing")},
            max_batch_size=batch,
            instances=recipe.preprocessing_instances,
        ),
        # One instance: it keeps the streams' state.
        python_model(
            "postprocessing",
            POSTPROCESSING,
            {**decoding, **recipe.of("postprocessing")},
            max_batch_size=batch,
            # What waits while it works comes to it at once. Triton then drops what belongs to a
            # client who left, which TensorRT-LLM's own model has no way to notice.
            queue=Queue() if runtime.ours else None,
        ),
        ensemble(signature, steps, max_batch_size=batch),
        python_model(
            "tensorrt_llm_bls",
            signature,
            {**encoding, **decoding, **relay, **recipe.of("tensorrt_llm_bls")},
            max_batch_size=batch,
            instances=recipe.bls_instances or min(batch, MOST_BLS_INSTANCES[runtime.name]),
            # An instance answers one request at a time, so none may wait for one that is busy.
            queue=Queue(batch=1, size=recipe.max_queue_size, timed=True),
            decoupled=recipe.decoupled,
        ),
    )


def find_tokenizer(folder: Path, recipe: ServingRecipe) -> tuple[Path, ...]:
    """Return the tokenizer's files, from --tokenizer or beside the model; BadInputError if none."""
    place = recipe.tokenizer or folder
    found = tuple(place / name for name in TOKENIZER_FILES if (place / name).is_file())
    if not found:
        raise BadInputError(
            f"{place} has no tokenizer, which serving text needs; pass --tokenizer with the folder "
            "of the model's tokenizer.json and tokenizer_config.json"
        )
    return found


def find_end_ids(*folders: Path | None) -> tuple[int, ...]:
    """Return the ids that end a text, from the first folder that says; BadInputError if none."""
    for folder in folders:
        for name in (GENERATION_CONFIG, "config.json"):
            if folder is not None and (tokens := _tokens(folder / name)).eos_ids:
                return tokens.eos_ids
    places = " and ".join(str(folder) for folder in folders if folder is not None)
    raise BadInputError(
        f"nothing in {places} says which ids end a text; put the model's {GENERATION_CONFIG} "
        "(eos_token_id) into the folder of --tokenizer"
    )


def _tokens(path: Path) -> SpecialTokens:
    if not path.is_file():
        return SpecialTokens()
    try:
        return SpecialTokens.from_json(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise BadInputError(f"{path} is damaged ({error}); expected a JSON object") from error
