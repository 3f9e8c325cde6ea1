"""Runtime `llmapi`: TensorRT-LLM's PyTorch runtime over a Hugging Face folder, without an engine.

The arguments of its LLM class lie in model.yaml beside the model, as in TensorRT-LLM's own Triton
model of that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    CONFIG_NAME,
    GENERATION_CONFIG,
    HUGGING_FACE,
    MANIFEST_NAME,
    Manifest,
)
from minitron_trt.build.containers import TRTLLM_VERSION, container_for
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.hf_config import HfConfig
from minitron_trt.convert.source.quantization_config import QUANTIZATION_FILE
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.folder_links import inside
from minitron_trt.spec import SpecialTokens
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import ElementTypes
from minitron_trt.triton_repo.model_config import python_model
from minitron_trt.triton_repo.parameters import defaults
from minitron_trt.triton_repo.runtimes.llm_arguments import MODEL_YAML
from minitron_trt.triton_repo.runtimes.runtime import (
    Runtime,
    check_max_seq_len,
    find_end_ids,
    find_tokenizer,
    need_end_ids,
)
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

DEFAULT_MAX_BATCH_SIZE: Final = 64

# The fields of TorchLlmArgs in TensorRT-LLM 1.2, which takes no others: it would say so when the
# server starts, and this says it when the repository is written.
LLM_ARGUMENTS: Final = frozenset(
    (
        "allreduce_strategy",
        "attn_backend",
        "backend",
        "batch_wait_max_tokens_ratio",
        "batch_wait_timeout_iters",
        "batch_wait_timeout_ms",
        "cache_transceiver_config",
        "checkpoint_format",
        "context_parallel_size",
        "cp_config",
        "cuda_graph_config",
        "disable_overlap_scheduler",
        "dtype",
        "enable_attention_dp",
        "enable_autotuner",
        "enable_chunked_prefill",
        "enable_iter_perf_stats",
        "enable_iter_req_stats",
        "enable_layerwise_nvtx_marker",
        "enable_lora",
        "enable_min_latency",
        "fail_fast_on_attention_window_too_large",
        "force_dynamic_quantization",
        "garbage_collection_gen0_threshold",
        "gather_generation_logits",
        "gpus_per_node",
        "guided_decoding_backend",
        "iter_stats_max_iterations",
        "kv_cache_config",
        "kv_connector_config",
        "load_format",
        "lora_config",
        "max_batch_size",
        "max_beam_width",
        "max_input_len",
        "max_num_tokens",
        "max_seq_len",
        "max_stats_len",
        "mm_encoder_only",
        "model",
        "moe_cluster_parallel_size",
        "moe_config",
        "moe_expert_parallel_size",
        "moe_tensor_parallel_size",
        "num_postprocess_workers",
        "orchestrator_type",
        "peft_cache_config",
        "perf_metrics_max_requests",
        "pipeline_parallel_size",
        "pp_partition",
        "print_iter_log",
        "request_stats_max_iterations",
        "return_perf_metrics",
        "revision",
        "sampler_type",
        "scheduler_config",
        "skip_tokenizer_init",
        "sparse_attention_config",
        "speculative_config",
        "stream_interval",
        "tensor_parallel_size",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "torch_compile_config",
        "trust_remote_code",
    )
)
_OWN: Final = {
    "model": "it is the folder beside the model",
    "backend": "this runtime is the PyTorch one",
    "trust_remote_code": "no code of a model folder is run",
    "tensor_parallel_size": "use --tp",
    "pipeline_parallel_size": "use --pp",
    "max_batch_size": "use --max-batch-size",
    "max_seq_len": "use --max-seq-len",
    "stream_interval": "use --stream-interval",
}
_MODEL: Final = "model"
_BEAM_SAMPLER: Final = "TorchSampler"


@dataclass(frozen=True, slots=True)
class HfFolder:
    """A Hugging Face folder that the PyTorch runtime loads; quantized ones are ModelOpt's."""

    folder: Path
    files: tuple[Path, ...]
    max_positions: int
    vocab_size: int

    @classmethod
    def open(cls, folder: Path) -> HfFolder:
        """Read the folder's facts; BadInputError or UnsupportedError say what is wrong with it."""
        if (folder / MANIFEST_NAME).is_file():
            Manifest.read(folder, HUGGING_FACE)
        config = HfConfig(read_json(folder, CONFIG_NAME))
        # Raises when the architecture is no Minitron family.
        _ = config.family
        sizes = [config.integer(key) for key in ("max_position_embeddings", "vocab_size")]
        files = tuple(inside(folder, path.name) for path in _files(folder))
        return cls(folder, files, *sizes)


def _files(folder: Path) -> Iterator[Path]:
    # One form of the weights, the one that transformers and LLM prefer; hubs often have both.
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise BadInputError(
            f"{folder} has no *.safetensors; expected a Hugging Face model folder (GGUF: run "
            "minitron-trt convert)"
        )
    yield from weights
    yield from sorted(folder.glob("*.index.json"))
    for name in (CONFIG_NAME, GENERATION_CONFIG, QUANTIZATION_FILE):
        if (folder / name).is_file():
            yield folder / name


def plan_llmapi(source: HfFolder, recipe: ServingRecipe) -> Runtime:
    """Serve a model folder with tensor and pipeline parallelism as the recipe says.

    UsageError when the recipe does not fit the model, BadInputError when there is no tokenizer.
    """
    recipe.refuse(LLMAPI, "mount", "max_queue_delay_us", "draft")
    batch = recipe.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    tp, pp = recipe.tp or 1, recipe.pp or 1
    parameters = {
        "max_queue_size": str(recipe.max_queue_size),
        # Upstream's default.
        "cancellation_check_period_ms": "100",
        **defaults(TENSORRT_LLM, LLMAPI),
        **recipe.settings_of(TENSORRT_LLM),
    }
    types = ElementTypes()
    tokenizer = find_tokenizer(recipe.tokenizer or source.folder)
    folders = (source.folder, recipe.tokenizer)
    end_ids = find_end_ids(SpecialTokens(), folders, tokenizer, source.vocab_size)
    need_end_ids(end_ids, *folders)
    return Runtime(
        name=LLMAPI,
        config=python_model(
            TENSORRT_LLM,
            tensorrt_llm(types, reports_streams=True),
            parameters,
            max_batch_size=batch,
            decoupled=recipe.decoupled,
        ),
        texts={
            MODEL_YAML: _yaml(_arguments(source, recipe, batch, tp, pp)),
            **{f"{_MODEL}/{name}": text for name, text in tokenizer.texts.items()},
        },
        links={f"{_MODEL}/{path.name}": path for path in (*source.files, *tokenizer.copied)},
        tokenizer=tokenizer,
        end_ids=end_ids,
        vocab_size=source.vocab_size,
        max_seq_len=recipe.max_seq_len or source.max_positions,
        types=types,
        reports_streams=True,
        most_text_instances=16,
        facts={
            "tp": tp,
            "pp": pp,
            "world_size": tp * pp,
            "tensorrt_llm": TRTLLM_VERSION,
            "image": container_for(TRTLLM_VERSION).image,
        },
    )


def _arguments(
    source: HfFolder, recipe: ServingRecipe, batch: int, tp: int, pp: int
) -> dict[str, Any]:
    """Return what the LLM class is called with."""
    arguments: dict[str, Any] = {
        "model": _MODEL,
        "backend": "pytorch",
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "max_batch_size": batch,
        "stream_interval": recipe.stream_interval,
        # LLM's own defaults, written out for whoever edits the file.
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.9},
    }
    check_max_seq_len(recipe, source.max_positions)
    if recipe.max_seq_len is not None:
        arguments["max_seq_len"] = recipe.max_seq_len
    for path, text in recipe.settings_of("llm").items():
        if path in _OWN:
            raise UsageError(f"llm.{path} cannot be set: {_OWN[path]}")
        _put(arguments, path, text)
    _choose_sampler(arguments)
    return arguments


def _choose_sampler(arguments: dict[str, Any]) -> None:
    """Have the sampler that TensorRT-LLM 1.2 searches rightly with where there are beams.

    What its `auto` chooses then differs between versions; the log probabilities and stop ids of
    TRTLLMSampler are known to be wrong with beams.
    """
    beams = arguments.get("max_beam_width", 1)
    if not isinstance(beams, int) or beams < 1:
        raise UsageError(f"llm.max_beam_width is {beams!r}; expected a whole number of at least 1")
    if beams == 1:
        return
    if arguments.setdefault("sampler_type", _BEAM_SAMPLER) != _BEAM_SAMPLER:
        raise UsageError(
            f"llm.sampler_type is {arguments['sampler_type']}, but llm.max_beam_width {beams} "
            f"needs {_BEAM_SAMPLER}; leave the sampler out"
        )
    if "speculative_config" in arguments:
        raise UsageError(
            f"llm.max_beam_width is {beams}, but {_BEAM_SAMPLER} has no beams with a "
            "speculative_config; leave one of them out"
        )


def _put(arguments: dict[str, Any], path: str, text: str) -> None:
    """Set an argument, or a field of one: `kv_cache_config.dtype`."""
    *parents, last = path.split(".")
    if "" in (*parents, last):
        raise UsageError(
            f"llm.{path} has an empty name; expected llm.ARGUMENT or llm.ARGUMENT.FIELD"
        )
    for parent in parents:
        arguments = arguments.setdefault(parent, {})
        if not isinstance(arguments, dict):
            raise UsageError(f"llm.{path}: {parent} is {arguments!r}, which has no fields")
    try:
        # True and False are Python's, which people write for its class.
        arguments[last] = json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        arguments[last] = text


def _yaml(arguments: Mapping[str, Any]) -> str:
    """Return YAML whose values are JSON, which YAML contains."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in arguments.items())
