"""Runtime `trtllm`: TensorRT-LLM's C++ backend over an engine, in NVIDIA's container.

Source: model_instance_state.cc and model_state.cc of TensorRT-LLM's Triton backend. What it misses
in `parameters` it takes its own default for, except three keys that must exist, if empty.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.build.containers import containers_with
from minitron_trt.build.engine import TRTLLM as TRTLLM_COMPILER
from minitron_trt.build.engine import Engine
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.errors import UnsupportedError
from minitron_trt.spec import SpecialTokens
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import (
    LOGITS_TYPES,
    PROMPT_TABLE_TYPES,
    ElementTypes,
)
from minitron_trt.triton_repo.model_config import Queue, engine_model
from minitron_trt.triton_repo.parameters import SPECULATIVE, defaults
from minitron_trt.triton_repo.runtimes.guided_decoding import INFO_NAME, tokenizer_info
from minitron_trt.triton_repo.runtimes.runtime import (
    Runtime,
    find_end_ids,
    find_tokenizer,
    need_end_ids,
)
from minitron_trt.triton_repo.runtimes.runtime_names import TRTLLM
from minitron_trt.triton_repo.serving_recipe import ServingRecipe
from minitron_trt.verification_record import verification_facts

log = logging.getLogger(__name__)

_ENGINE: Final = "engine"
_GUIDE_INFO: Final = "xgrammar_tokenizer_info_path"
_KEYS_THAT_MUST_EXIST: Final = ("tokenizer_dir", "guided_decoding_backend", _GUIDE_INFO)
# As upstream's config.pbtxt has them; the program's path is that of NVIDIA's images.
_FIXED: Final = MappingProxyType(
    {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    }
)


def plan_trtllm(engine: Engine, recipe: ServingRecipe) -> Runtime:
    """Serve an engine that TensorRT-LLM built.

    UnsupportedError when the backend cannot load it or the recipe asks more than it was built for;
    BadInputError when there is no tokenizer.
    """
    recipe.refuse(TRTLLM, "draft")
    _check_compiler(engine)
    _check_recipe(engine, recipe)
    _check_settings(engine, recipe.settings_of(TENSORRT_LLM))
    types = ElementTypes(
        logits=_element(engine, "logits_dtype", engine.logits_dtype, LOGITS_TYPES),
        prompt_table=_element(engine, "dtype", engine.model.dtype, PROMPT_TABLE_TYPES),
    )
    if engine.takes_drafts:
        log.warning(
            "%s takes drafts from clients of tensorrt_llm (draft_input_ids); ensemble and "
            "tensorrt_llm_bls run no draft model and generate without",
            engine.folder,
        )
    batch = recipe.max_batch_size or engine.limits.max_batch_size
    tokenizer = find_tokenizer(recipe.tokenizer or engine.folder)
    end_ids = _end_ids(engine, recipe.tokenizer, tokenizer)
    parameters, texts = _parameters(engine, recipe), {}
    if parameters["guided_decoding_backend"] and not parameters[_GUIDE_INFO]:
        parameters[_GUIDE_INFO] = f"{_mounted(recipe)}/{INFO_NAME}"
        texts[INFO_NAME] = tokenizer_info(tokenizer, end_ids)
    return Runtime(
        name=TRTLLM,
        config=engine_model(
            tensorrt_llm(types, reports_streams=False),
            parameters,
            Queue(batch, recipe.max_queue_size, recipe.max_queue_delay_us),
            decoupled=recipe.decoupled,
        ),
        texts=texts,
        links={f"{_ENGINE}/{path.relative_to(engine.folder)}": path for path in engine.files},
        tokenizer=tokenizer,
        end_ids=end_ids,
        vocab_size=engine.model.spec.vocab,
        max_seq_len=engine.limits.max_seq_len,
        types=types,
        reports_streams=False,
        most_text_instances=16,
        facts=_facts(engine, recipe),
    )


def _parameters(engine: Engine, recipe: ServingRecipe) -> dict[str, str]:
    return {
        **_FIXED,
        **dict.fromkeys(_KEYS_THAT_MUST_EXIST, ""),
        "cancellation_check_period_ms": "100",
        **defaults(TENSORRT_LLM, TRTLLM),
        "gpt_model_path": f"{_mounted(recipe)}/{_ENGINE}",
        "max_beam_width": str(engine.limits.max_beam_width),
        # Both need an engine with paged context attention, and are good wherever there is one.
        "enable_kv_cache_reuse": json.dumps(engine.paged_context),
        "enable_chunked_context": json.dumps(engine.paged_context),
        **recipe.settings_of(TENSORRT_LLM),
    }


def _mounted(recipe: ServingRecipe) -> str:
    """Return where the version folder will be: the backend counts relative paths from nowhere."""
    return f"{recipe.mount.rstrip('/')}/{TENSORRT_LLM}/1"


def _check_compiler(engine: Engine) -> None:
    if engine.compiler != TRTLLM_COMPILER:
        raise UnsupportedError(
            f"{engine.folder} was compiled by {engine.compiler}, and Triton's tensorrtllm backend "
            "loads TensorRT-LLM's own engines only; build with --compiler trtllm, or serve the "
            "checkpoint it was built from: minitron-trt triton-repo CHECKPOINT"
        )


def _check_recipe(engine: Engine, recipe: ServingRecipe) -> None:
    limits = engine.limits
    if recipe.max_batch_size is not None and recipe.max_batch_size > limits.max_batch_size:
        raise UnsupportedError(
            f"--max-batch-size {recipe.max_batch_size} exceeds the engine's "
            f"{limits.max_batch_size}; lower it or build again with a larger --max-batch-size"
        )
    if recipe.max_seq_len is not None and recipe.max_seq_len != limits.max_seq_len:
        raise UnsupportedError(
            f"--max-seq-len {recipe.max_seq_len} cannot change the engine's {limits.max_seq_len}; "
            "leave it out or build again"
        )
    if recipe.stream_interval != 1:
        raise UnsupportedError(
            "TensorRT-LLM's C++ backend sends every token; --stream-interval is of the runtimes "
            "reference and llmapi"
        )
    tp, pp = engine.model.parallelism.tp, engine.model.parallelism.pp
    if (recipe.tp or tp, recipe.pp or pp) != (tp, pp):
        raise UnsupportedError(
            f"the engine is for TP {tp} and PP {pp}; leave out --tp and --pp or build again"
        )


def _check_settings(engine: Engine, settings: Mapping[str, str]) -> None:
    beams, mode = engine.limits.max_beam_width, settings.get("decoding_mode")
    if int(settings.get("max_beam_width", 1)) > beams:
        raise UnsupportedError(
            f"max_beam_width {settings['max_beam_width']} exceeds the engine's {beams}; build "
            "again with a larger --max-beam-width"
        )
    if mode == "beam_search" and beams == 1:
        raise UnsupportedError(
            "decoding_mode beam_search needs an engine built with --max-beam-width above 1"
        )
    if mode in SPECULATIVE and not engine.speculates:
        raise UnsupportedError(
            f"decoding_mode {mode} needs an engine built with --speculative_decoding_mode; "
            "this one was built without"
        )
    for name in ("enable_chunked_context", "enable_kv_cache_reuse"):
        if settings.get(name) == "true" and not engine.paged_context:
            raise UnsupportedError(
                f"{name} needs an engine with use_paged_context_fmha, which this one was built "
                "without; build again"
            )
    devices = settings.get("gpu_device_ids")
    ranks = engine.model.parallelism.world_size
    if devices and {len(group.split(",")) for group in devices.split(";")} != {ranks}:
        raise UnsupportedError(f"gpu_device_ids is {devices!r}; the engine has {ranks} ranks")


def _element(engine: Engine, key: str, dtype: str, known: Mapping[str, str]) -> str:
    if dtype not in known:
        raise UnsupportedError(
            f"{engine.folder}: {key} is {dtype}; TensorRT-LLM's backend takes {', '.join(known)}"
        )
    return known[dtype]


def _end_ids(engine: Engine, folder: Path | None, tokenizer: SourceTokenizer) -> tuple[int, ...]:
    told = engine.tokens or SpecialTokens()
    folders = (engine.folder, folder)
    return need_end_ids(find_end_ids(told, folders, tokenizer, engine.model.spec.vocab), *folders)


def _facts(engine: Engine, recipe: ServingRecipe) -> dict[str, Any]:
    parallelism, version = engine.model.parallelism, engine.compiler_version
    images = containers_with(version) if version else ()
    return {
        "tp": parallelism.tp,
        "pp": parallelism.pp,
        "world_size": parallelism.world_size,
        "tensorrt_llm": version,
        "sm": engine.sm,
        "image": images[-1].image if images else None,
        "mount": recipe.mount,
        **verification_facts(engine.verification),
    }
