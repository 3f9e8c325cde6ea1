"""What is migrated: a checkpoint, an engine's config.json, or a repository that serves one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    CHECKPOINT,
    CONFIG_NAME,
    ENGINE,
    MANIFEST_NAME,
    REPOSITORY,
    Manifest,
    kind_of,
    sha256,
)
from minitron_trt.build.engine import EngineConfig, engine_model
from minitron_trt.build.engine_model import EngineModel
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.source.weight_files import has_weights
from minitron_trt.errors import BadInputError, MinitronError, UnsupportedError, an
from minitron_trt.families import FAMILIES
from minitron_trt.migrate.fates import Fate, Ledger, SettingFate
from minitron_trt.migrate.setting_rules import (
    BUILD,
    FIELDS,
    MAPPING,
    MODEL,
    OTHER_PLUGIN,
    PARAMETERS,
    PLUGINS,
    QUANTIZATION,
    SHARED_FIELDS,
    SPECULATION,
)
from minitron_trt.records import read_record
from minitron_trt.triton_repo.check.model_on_disk import (
    TEXT_RUNTIME,
    ModelFolder,
    RepositoryFolder,
)
from minitron_trt.triton_repo.check.repository_check import is_repository, read_repository
from minitron_trt.triton_repo.contract.model_names import (
    MODELS,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)

_PATH_KEY: Final = "gpt_model_path"
_SECTIONS: Final = ("mapping", "quantization")
# The formats: what becomes of them depends on the weights that are served (weight_fates).
_DECIDED: Final = ("quant_algo", "kv_cache_quant_algo")
# What `_fields` reads of a config.pbtxt by its name, or what the models written here have anyhow.
_KNOWN_FIELDS: Final = frozenset(
    (
        "name",
        "backend",
        "platform",
        "input",
        "output",
        "parameters",
        "ensemble_scheduling",
        "max_batch_size",
        "model_transaction_policy",
        "dynamic_batching",
        "instance_group",
        "default_model_filename",
    )
)
# What the Hugging Face class of a family does not have; another value is another model.
_AS_THE_CLASS: Final[Mapping[str, Any]] = {
    "position_embedding_type": "rope_gpt_neox",
    "gpt_variant": "nemotron",
    "bias": False,
    "attn_bias": False,
    "mlp_bias": False,
    "residual_mlp": False,
    "qk_layernorm": False,
    "q_scaling": 1.0,
    "apply_query_key_layer_scaling": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}


@dataclass(slots=True)
class Origin:
    """What a source says, as far as it lies on this machine."""

    place: Path
    kind: str
    ledger: Ledger = field(default_factory=Ledger)
    checkpoint: Checkpoint | None = None
    engine: EngineModel | None = None  # the model of an engine
    model: Path | None = None  # a folder with the model's weights that the source names
    made_of: str | None = None  # the hub id or path that a manifest has
    tokenizer: Path | None = None


def open_origin(place: Path) -> Origin:
    """Read a source and every setting of it; BadInputError or UnsupportedError say what is wrong.

    `place` is a folder, or an engine's config.json.
    """
    if place.is_file():
        return _engine(place.parent, place)
    if not place.is_dir():
        raise BadInputError(
            f"{place} is not there; expected a checkpoint, an engine's folder or config.json, or a "
            "model repository"
        )
    if is_repository(place):
        return _repository(place)
    if (place / MANIFEST_NAME).is_file():
        kind = kind_of(place)
        if kind not in (CHECKPOINT, ENGINE):
            raise BadInputError(
                f"{place} is {an(kind)}; expected a checkpoint, an engine or a repository"
            )
    path = place / CONFIG_NAME
    if not path.is_file():
        raise BadInputError(
            f"{place} has no {CONFIG_NAME}; expected a checkpoint, an engine or a repository"
        )
    config = _read(path)
    if "build_config" in config:
        return _engine(place, path)
    if "architectures" in config:
        raise UnsupportedError(
            f"{place} is a Hugging Face folder, which the PyTorch runtime serves as it is; run: "
            f"minitron-trt triton-repo {place} -o repository"
        )
    return _checkpoint(place, config)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, dict[str, Any])
    except ValueError as error:
        raise BadInputError(f"{path} is not a JSON object ({error})") from error


def _checkpoint(folder: Path, config: dict[str, Any]) -> Origin:
    has_manifest = (folder / MANIFEST_NAME).is_file()
    opened = Checkpoint.open(folder) if has_manifest else Checkpoint.open_foreign(folder)
    origin = Origin(folder, CHECKPOINT, checkpoint=opened, tokenizer=folder)
    origin.made_of = _source_of(opened.manifest.source)
    _take_model(origin, CONFIG_NAME, config)
    return origin


def _engine(folder: Path, path: Path) -> Origin:
    origin = Origin(folder, ENGINE, tokenizer=folder)
    _take_engine(origin, path)
    return origin


def _take_engine(origin: Origin, path: Path) -> None:
    """Read an engine's config.json, and what its manifest says of its making."""
    config = _read(path)
    try:
        read = read_record(path, EngineConfig)
    except ValueError as error:
        raise BadInputError(f"{path} is not the config of an engine ({error})") from error
    origin.engine = engine_model(path.parent, read.pretrained_config)
    name = f"engine {path.name}"
    _take_model(origin, f"{name}: pretrained_config", config["pretrained_config"])
    build = dict(config["build_config"])
    plugins = build.pop("plugin_config", None) or {}
    lora = _record(build.get("lora_config"))
    if not (lora.get("lora_dir") or lora.get("lora_target_modules")):
        # What trtllm-build writes where nobody asked for LoRA.
        build.pop("lora_config", None)
    origin.ledger.take(f"{name}: build_config", build, BUILD)
    rules = {key: PLUGINS.get(key, OTHER_PLUGIN) for key in plugins}
    origin.ledger.take(f"{name}: plugin_config", plugins, rules)
    if version := config.get("version"):
        origin.ledger.note(
            SettingFate(name, "version", str(version), Fate.LOST, reason="no engine is tied to it")
        )
    if (path.parent / MANIFEST_NAME).is_file():
        source = Manifest.read_unchecked(path.parent, ENGINE).source
        # The manifest names the checkpoint and, under `source`, what that was made of.
        origin.checkpoint = _still_there(source)
        origin.made_of = _source_of(source.get("source") or {})


def _record(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _still_there(source: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint that an engine was built from, where it lies as it did then."""
    folder = Path(str(source.get("checkpoint")))
    try:
        if sha256(folder / MANIFEST_NAME) == source.get("manifest_sha256"):
            return Checkpoint.open(folder)
    except (OSError, ValueError, MinitronError):
        # Gone, or another by now: then the model has to be named.
        return None
    return None


def _source_of(source: Mapping[str, Any]) -> str | None:
    named = source.get("repo") or source.get("path")
    return named if isinstance(named, str) else None


def _take_model(origin: Origin, section: str, config: Mapping[str, Any]) -> None:
    """Take what a config says of the model; UnsupportedError where the class has another graph."""
    for name, expected in _AS_THE_CLASS.items():
        value = config.get(name, expected)
        if value is not None and value != expected:
            raise UnsupportedError(
                f"{origin.place}: {name} is {value!r}; the Hugging Face class of "
                f"{config.get('architecture')} has {expected!r}"
            )
    experts = _record(config.get("moe")).get("num_experts", 0)
    if experts:
        raise UnsupportedError(f"{origin.place}: the model has {experts} experts; expected none")
    family = FAMILIES.get(str(config.get("architecture")))
    activation = config.get("hidden_act")
    if family and activation not in (None, family.trtllm_activation, *family.activations):
        raise UnsupportedError(
            f"{origin.place}: hidden_act is {activation!r}; {family.architecture} has "
            f"{family.trtllm_activation!r}"
        )
    plain = {key: value for key, value in config.items() if key not in _SECTIONS}
    origin.ledger.take(section, plain, MODEL)
    origin.ledger.take(f"{section}: mapping", config.get("mapping") or {}, MAPPING)
    quantization = config.get("quantization") or {}
    # The section is there for unquantized models, too, full of defaults that mean nothing.
    if any(quantization.get(key) for key in _DECIDED):
        details = {key: value for key, value in quantization.items() if key not in _DECIDED}
        origin.ledger.take(f"{section}: quantization", details, QUANTIZATION)


def _repository(folder: Path) -> Origin:
    repository, findings = read_repository(folder)
    broken = next((m for m in repository.models.values() if m.config is None), None)
    if broken is not None or findings:
        file = broken.file if broken is not None else findings[0].file
        raise BadInputError(f"{folder / file} cannot be read; minitron-trt check {folder} says why")
    if any(repository.of_role(TEXT_RUNTIME)) or (repository.facts or {}).get("runtime") == "llmapi":
        raise UnsupportedError(f"{folder} is served by the PyTorch runtime already")
    origin = Origin(folder, REPOSITORY)
    served = _served(repository)
    if served is None:
        raise BadInputError(f"{folder} has no model {TENSORRT_LLM}; expected one over an engine")
    _take_artifact(origin, repository, served)
    for model in repository.models.values():
        # A draft model: its batch and its share of the memory are not for the model that answers.
        if model.role == TENSORRT_LLM and model is not served:
            reason = f"it is not the model that answers; {SPECULATION}"
            origin.ledger.note(
                SettingFate(model.file, "name", model.name, Fate.LOST, reason=reason)
            )
        else:
            _take_config(origin, model)
    # What the models of text use; engines of trtllm-build bring none.
    origin.tokenizer = _tokenizer(repository) or origin.tokenizer
    if origin.tokenizer is not None and has_weights(origin.tokenizer):
        # NVIDIA's instructions have the tokenizer's folder be the model's.
        origin.model = origin.tokenizer
    return origin


def _served(repository: RepositoryFolder) -> ModelFolder | None:
    """Return the model that answers: of several the one that tensorrt_llm_bls asks for answers."""
    found = {model.name: model for model in repository.of_role(TENSORRT_LLM)}
    asked = (
        model.parameters.get("tensorrt_llm_model_name")
        for model in repository.of_role(TENSORRT_LLM_BLS)
    )
    return next((found[name] for name in (*asked, TENSORRT_LLM, *found) if name in found), None)


def _take_artifact(origin: Origin, repository: RepositoryFolder, model: ModelFolder) -> None:
    """Read the engine, or the checkpoint, that a repository serves, where it is on this machine."""
    named = model.parameters.get(_PATH_KEY)
    place = repository.locate(model, named) if named else None
    if place is None or not (place / CONFIG_NAME).is_file():
        return
    config = _read(place / CONFIG_NAME)
    if "build_config" in config:
        origin.tokenizer = place
        _take_engine(origin, place / CONFIG_NAME)
    else:
        inner = _checkpoint(place, config)
        origin.checkpoint, origin.tokenizer = inner.checkpoint, place
        origin.made_of, origin.ledger = inner.made_of, inner.ledger


def _tokenizer(repository: RepositoryFolder) -> Path | None:
    for model in repository.of_role(PREPROCESSING):
        named = model.parameters.get("tokenizer_dir")
        place = repository.locate(model, named) if named else None
        if place is not None and place.is_dir():
            return place
    return None


def _take_config(origin: Origin, model: ModelFolder) -> None:
    """Take the fields and the parameters of a config.pbtxt."""
    if model.role not in MODELS:
        origin.ledger.note(
            SettingFate(
                model.file,
                "name",
                model.name,
                Fate.LOST,
                reason="it is none of TensorRT-LLM's models; copy it over",
            )
        )
        return
    rules = {**SHARED_FIELDS, **FIELDS[model.role]}
    origin.ledger.take(model.file, _fields(model), rules)
    values = {key: value for key, value in model.parameters.items() if value}
    origin.ledger.take(f"{model.file}: parameters", values, PARAMETERS[model.role])


def _fields(model: ModelFolder) -> dict[str, Any]:
    """Return what a config sets besides tensors and parameters; 0 counts as not set."""
    config = model.config
    batching = config.dynamic_batching
    fields: dict[str, Any] = {
        "max_batch_size": config.max_batch_size or None,
        "decoupled": config.model_transaction_policy.decoupled
        if config.HasField("model_transaction_policy")
        else None,
        "preferred_batch_size": list(batching.preferred_batch_size) or None,
        "max_queue_delay_microseconds": batching.max_queue_delay_microseconds or None,
        "max_queue_size": batching.default_queue_policy.max_queue_size or None,
        "instance_group.count": sum(group.count or 1 for group in config.instance_group) or None,
    }
    others = {
        descriptor.name: str(value).strip()
        for descriptor, value in config.ListFields()
        if descriptor.name not in _KNOWN_FIELDS
    }
    return {**fields, **others}
