"""The files that every repository has, whatever generates its tokens."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.triton_repo.contract.ensemble_steps import ensemble_steps
from minitron_trt.triton_repo.contract.model_names import (
    ENSEMBLE,
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
    TEXT_MODELS,
)
from minitron_trt.triton_repo.contract.tensors import (
    POSTPROCESSING_TENSORS,
    PREPROCESSING_TENSORS,
    bls_model,
    text_model,
)
from minitron_trt.triton_repo.model_config import (
    CONFIG_PBTXT,
    PYTHON_BACKEND,
    ModelConfig,
    Queue,
    ensemble,
    python_model,
    to_text,
)
from minitron_trt.triton_repo.runtimes.runtime import Runtime
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

_SOURCES: Final = Path(__file__).with_name("models")
_TOKENIZER: Final = "tokenizer"
# While one tokenizes a long prompt, short ones go through another.
_MOST_PREPROCESSING: Final = 4
# Text has 3 to 6 characters per token; the longest of a large vocabulary, spaces and rules, 128.
_CHARACTERS_PER_TOKEN: Final = 32
# JSON may write a character as two escapes of six, and a number of an embedding bias as long.
_BYTES_PER_CHARACTER: Final = 12
_BYTES_PER_NUMBER: Final = 24
# Words, of which there are three lists, and names.
_OTHER_BYTES: Final = 2**20
# What Triton allows by itself, since 2.59.
_TRITON_INPUT_BYTES: Final = 2**26


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
    if not os.access(source, os.R_OK):
        # A link to it can be made all the same, and be read by nobody.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
    try:
        os.link(source, target)
    except OSError:
        # Another file system, one without hard links, or a file of somebody else's, to which Linux
        # makes none (protected_hardlinks).
        shutil.copyfile(source, target)


def plan_repository(
    runtime: Runtime, recipe: ServingRecipe, draft: Runtime | None = None
) -> RepositoryPlan:
    """Lay the models of text out around a runtime, and around what drafts for it."""
    generators = (runtime,) if draft is None else (runtime, draft)
    configs = (*_text_configs(runtime, recipe, draft), *(each.config for each in generators))
    texts = {f"{config.name}/{CONFIG_PBTXT}": to_text(config) for config in configs}
    for name in TEXT_MODELS:
        texts |= _python_sources(name, source=name)
    for each in generators:
        if each.config.backend == PYTHON_BACKEND:
            source = f"{TENSORRT_LLM}_{each.name}"
            texts |= _python_sources(each.config.name, source=source, subpackage=each.name)
    texts |= {
        f"{name}/1/{_TOKENIZER}/{file}": text
        for name in TEXT_MODELS
        for file, text in runtime.tokenizer.texts.items()
    }
    for each in generators:
        texts |= {f"{each.config.name}/1/{name}": text for name, text in each.texts.items()}
    for name in (ENSEMBLE, *(each.config.name for each in generators)):
        # Triton wants a version folder, also where nothing lies in it.
        texts[f"{name}/1/.keep"] = ""
    links = {
        f"{name}/1/{_TOKENIZER}/{path.name}": path
        for name in TEXT_MODELS
        for path in runtime.tokenizer.copied
    }
    for each in generators:
        links |= {f"{each.config.name}/1/{name}": path for name, path in each.links.items()}
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


def max_request_bytes(runtime: Runtime) -> int | None:
    """Return how large a request over HTTP may be, at most what Triton allows by itself.

    None where a request has tensors that nothing bounds: TensorRT-LLM's own model takes weights of
    LoRA, prompt tables and logits of drafts.
    """
    if runtime.config.backend != PYTHON_BACKEND:
        return None
    row = _most_characters(runtime) * _BYTES_PER_CHARACTER + runtime.vocab_size * _BYTES_PER_NUMBER
    rows: int = runtime.config.max_batch_size
    return min(rows * row + _OTHER_BYTES, _TRITON_INPUT_BYTES)


def _most_characters(runtime: Runtime) -> int:
    """Return how long a prompt may be: longer ones are not tokenized."""
    return runtime.max_seq_len * min(runtime.tokenizer.longest_token, _CHARACTERS_PER_TOKEN)


def _encoding(runtime: Runtime, recipe: ServingRecipe) -> dict[str, str]:
    """Return the parameters of the models that make ids of text."""
    return {
        "tokenizer_dir": _TOKENIZER,
        "add_special_tokens": json.dumps(recipe.add_special_tokens),
        "apply_chat_template": json.dumps(recipe.apply_chat_template),
        "exclude_input_in_output": json.dumps(recipe.exclude_input_in_output),
        "end_ids": json.dumps(list(runtime.end_ids)),
        "vocab_size": str(runtime.vocab_size),
        "max_prompt_characters": str(_most_characters(runtime)),
    }


def _text_configs(
    runtime: Runtime, recipe: ServingRecipe, draft: Runtime | None
) -> tuple[ModelConfig, ...]:
    batch = runtime.config.max_batch_size
    encoding = _encoding(runtime, recipe)
    decoding = {
        "tokenizer_dir": _TOKENIZER,
        "skip_special_tokens": json.dumps(recipe.skip_special_tokens),
    }
    # Whether tensorrt_llm says why an answer ended.
    relay = {"finish_reason": json.dumps(runtime.reports_streams)}
    drafts = {} if draft is None else {"tensorrt_llm_draft_model_name": draft.config.name}
    # A client of models that send one response waits for that one.
    ending = {"empty_final_response": json.dumps(recipe.decoupled)}
    signature = text_model(runtime.types)
    steps = ensemble_steps(runtime.types, reports_streams=runtime.reports_streams)
    return (
        python_model(
            PREPROCESSING,
            PREPROCESSING_TENSORS,
            {**encoding, **recipe.settings_of(PREPROCESSING)},
            max_batch_size=batch,
            instances=recipe.preprocessing_instances
            or min(batch, runtime.most_text_instances, _MOST_PREPROCESSING),
        ),
        # One instance: it keeps the streams' state.
        python_model(
            POSTPROCESSING,
            POSTPROCESSING_TENSORS,
            {**decoding, **ending, **recipe.settings_of(POSTPROCESSING)},
            max_batch_size=batch,
            # What waits while it works comes to it at once. Triton then drops what belongs to a
            # client who left, which TensorRT-LLM's own model has no way to notice.
            queue=Queue(ordered=True) if runtime.reports_streams else None,
        ),
        ensemble(signature, steps, max_batch_size=batch),
        python_model(
            TENSORRT_LLM_BLS,
            bls_model(runtime.types),
            {**encoding, **decoding, **relay, **drafts, **recipe.settings_of(TENSORRT_LLM_BLS)},
            max_batch_size=batch,
            instances=recipe.bls_instances or min(batch, runtime.most_text_instances),
            # An instance answers one request at a time, so none may wait for one that is busy.
            queue=Queue(batch=1, size=recipe.max_queue_size, timed=True),
            decoupled=recipe.decoupled,
        ),
    )
