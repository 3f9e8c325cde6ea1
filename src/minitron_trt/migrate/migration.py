"""A migration: planned from a source and the weights it is for, then written whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    CHECKPOINT,
    CONFIG_NAME,
    GENERATION_CONFIG,
    HUGGING_FACE,
    MANIFEST_NAME,
    MIGRATION,
    Manifest,
    kind_of,
)
from minitron_trt.checkpoint import Checkpoint, manifest_facts
from minitron_trt.console import ShowProgress, no_display, size_text
from minitron_trt.convert.hf_output import HfModel
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.locate import locate
from minitron_trt.convert.source.model_folder import folder_spec
from minitron_trt.convert.source.special_tokens import read_special_tokens
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.convert.source.weight_files import has_weights
from minitron_trt.errors import BadInputError, OutputError, UnsupportedError, UsageError
from minitron_trt.families import FAMILIES
from minitron_trt.migrate.fates import RECIPE, Fate, Ledger
from minitron_trt.migrate.hf_weights import MODEL_FOLDER, NormsWritten, write_hf_weights
from minitron_trt.migrate.origin import Origin, open_origin
from minitron_trt.migrate.weight_fates import (
    carried_kv_cache,
    note_checkpoint,
    note_folder,
    note_norms,
)
from minitron_trt.outputs import check_output, output_errors, staged
from minitron_trt.quantization.precisions import (
    PRECISIONS,
    precision_of,
)
from minitron_trt.spec import ModelSpec, Parallelism, SpecialTokens
from minitron_trt.triton_repo.parameters import parse_settings
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.llmapi_runtime import LLM_ARGUMENTS
from minitron_trt.triton_repo.runtimes.runtime import find_tokenizer
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

REPOSITORY_FOLDER: Final = "repository"
REPORT_NAME: Final = "migration.json"
# What an engine's sizes must be for its tensors to be this model's.
_COMPARED: Final = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_size",
    "intermediate",
    "vocab",
)


@dataclass(frozen=True, slots=True)
class MigrateOptions:
    """What a source does not say, or is to be otherwise; `model` is a folder, id or checkpoint."""

    model: str | None = None
    tokenizer: Path | None = None
    tp: int | None = None
    pp: int | None = None
    revision: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """A Hugging Face folder to be written from a checkpoint; `tokenizer` is a folder."""

    checkpoint: Checkpoint
    model: HfModel
    tokens: SpecialTokens
    tokenizer: Path

    def write(self, folder: Path, progress: ShowProgress) -> NormsWritten:
        """Write weights, configs, tokenizer and manifest."""
        model = self.model
        size = sum(entry.size_bytes for entry in model.lay_out(folder)[1])
        # Before the first byte is written: joining takes minutes.
        if (free := shutil.disk_usage(folder).free) < size:
            raise OutputError(
                f"the model needs {size_text(size)} but its disk has {size_text(free)} free; "
                "choose another disk"
            )
        with progress("join", size) as advance:
            written = write_hf_weights(self.checkpoint, folder, model=model, advance=advance)
        SourceTokenizer.find(self.tokenizer).write(folder)
        if (self.tokenizer / GENERATION_CONFIG).is_file():
            shutil.copyfile(self.tokenizer / GENERATION_CONFIG, folder / GENERATION_CONFIG)
        model.write_configs(folder, _ids(self.tokens))
        facts = manifest_facts(
            model.spec, model.precision, Parallelism(), self.tokens, model.kv_cache
        )
        Manifest(HUGGING_FACE, {"path": str(self.checkpoint.folder)}, facts).write(folder)
        return written


def _ids(tokens: SpecialTokens) -> dict[str, Any]:
    """Return what config.json says of special tokens; transformers has defaults of its own."""
    ends = list(tokens.eos_ids)
    return {
        "bos_token_id": tokens.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        **({} if tokens.pad_id is None else {"pad_token_id": tokens.pad_id}),
    }


@dataclass(frozen=True, slots=True)
class Migration:
    """What will be written, and the fate of every setting; `model` is a folder that is there."""

    origin: Origin
    recipe: ServingRecipe
    folder: FolderPlan | None
    model: Path | None

    @property
    def ledger(self) -> Ledger:
        """Return the settings and what they came to."""
        return self.origin.ledger

    def to_json(self) -> dict[str, Any]:
        """Return the report."""
        return {
            "source": str(self.origin.place),
            "kind": self.origin.kind,
            "model": MODEL_FOLDER if self.folder else str(self.model),
            "repository": REPOSITORY_FOLDER,
            **{fate.value: self.ledger.count(fate) for fate in Fate},
            "settings": [setting.to_json() for setting in self.ledger.settings],
        }

    def carry_out(
        self, output: Path, *, overwrite: bool = False, progress: ShowProgress = no_display
    ) -> None:
        """Write model, repository and report, whole or not at all."""
        inputs = [self.origin.place, *([self.model] if self.model else [])]
        check_output(output, overwrite=overwrite, kind=MIGRATION, inputs=inputs)
        with staged(output, overwrite=overwrite) as scratch:
            model, place = self.model, self.model
            if self.folder is not None:
                model, place = scratch / MODEL_FOLDER, output / MODEL_FOLDER
                with output_errors(output):
                    model.mkdir()
                    written = self.folder.write(model, progress)
                note_norms(self.ledger, written)
            assert model is not None
            emit_repository(
                model,
                scratch / REPOSITORY_FOLDER,
                self.recipe,
                runtime=LLMAPI,
                # The scratch folder is renamed: a manifest names the model where it will lie.
                recorded_as=place,
            )
            report = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
            (scratch / REPORT_NAME).write_text(report + "\n", encoding="utf-8")
            Manifest(MIGRATION, {"path": str(self.origin.place)}, {}).write(scratch)


def plan_migration(source: Path, options: MigrateOptions) -> Migration:
    """Return what a source becomes; nothing is written.

    BadInputError when it has no weights and nothing says where they are, or those are another
    model's; UnsupportedError when no Hugging Face folder can hold them.
    """
    origin = open_origin(source)
    _find_weights(origin, options)
    folder = None
    if origin.checkpoint is not None:
        _compare(origin, origin.checkpoint.spec, origin.checkpoint.folder)
        folder = _plan_folder(origin, origin.checkpoint, options.tokenizer)
        positions = folder.model.spec.max_positions
    else:
        assert origin.model is not None
        spec = folder_spec(origin.model)
        _compare(origin, spec, origin.model)
        note_folder(origin, origin.model)
        positions = spec.max_positions
    # Last, so that what the user says wins over what every section said.
    for name in ("tp", "pp"):
        if (requested := getattr(options, name)) is not None:
            origin.ledger.aim(f"{RECIPE}.{name}", str(requested), f"--{name} says so")
    try:
        recipe = _recipe(origin, positions, None if folder else options.tokenizer)
    except (UsageError, ValueError) as error:
        raise BadInputError(f"{source}: {error}") from error
    return Migration(origin, recipe, folder, origin.model)


def _find_weights(origin: Origin, options: MigrateOptions) -> None:
    """Decide between a checkpoint and a model folder; BadInputError when there is neither."""
    if options.model is not None:
        place = locate(options.model, revision=options.revision, token=options.token)
        origin.checkpoint, origin.model = None, None
        if (place / MANIFEST_NAME).is_file() and kind_of(place) == CHECKPOINT:
            origin.checkpoint = Checkpoint.open(place)
            origin.tokenizer = origin.tokenizer or place
        elif place.is_dir():
            origin.model = place
        else:
            raise BadInputError(
                f"{place} is a file; make a folder of it first: minitron-trt convert {place} "
                "--format hf -o model"
            )
    elif origin.checkpoint is not None:
        origin.model = None
    elif origin.model is None:
        made_of = Path(origin.made_of) if origin.made_of else None
        if made_of is None or not has_weights(made_of):
            said = f" (its manifest says {origin.made_of})" if origin.made_of else ""
            raise BadInputError(
                f"{origin.place} holds no weights, as engines do not; name the model that it was "
                f"made of{said}: --model FOLDER, hub id or checkpoint"
            )
        origin.model = made_of


def _compare(origin: Origin, spec: ModelSpec, place: Path) -> None:
    """Raise BadInputError where an engine is of another model than its weights."""
    if origin.engine is None:
        return
    engine = origin.engine.spec
    # Engines of other tools name classes that no table here has; their sizes say enough.
    names = (*_COMPARED, *(["architecture"] if engine.architecture in FAMILIES else []))
    for name in names:
        there, here = getattr(spec, name), getattr(engine, name)
        if there != here:
            raise BadInputError(
                f"{place} is not the model of this engine: {name} {there}, expected {here}"
            )


def _plan_folder(origin: Origin, checkpoint: Checkpoint, tokenizer: Path | None) -> FolderPlan:
    precision = checkpoint.precision
    if not (precision.in_hf or precision.built_in):
        known = ", ".join(name for name, known in PRECISIONS.items() if known.in_hf)
        raise UnsupportedError(
            f"{checkpoint.folder} is {precision.name}, which no Hugging Face folder holds as it "
            f"is (only {known}); migrate with the unquantized model: --model"
        )
    # trtllm-build quantizes these as it reads them: the checkpoint has them unquantized.
    stored = precision_of(precision.dtype, None) if precision.built_in else precision
    place = tokenizer or origin.tokenizer or checkpoint.folder
    found = find_tokenizer(place)
    tokens = checkpoint.tokens
    if not tokens.eos_ids:
        config = read_json(place, CONFIG_NAME) if (place / CONFIG_NAME).is_file() else {}
        tokens = read_special_tokens(place, config, found, checkpoint.spec.vocab).tokens
    # A checkpoint has lm_head in any case; that the source had one matrix for both, its manifest
    # alone knows.
    tied = bool((checkpoint.manifest.facts.get("spec") or {}).get("tied"))
    spec = replace(checkpoint.spec, tied=tied)
    note_checkpoint(origin.ledger, checkpoint, stored)
    kv_cache = carried_kv_cache(origin.ledger, checkpoint.kv_cache, stored)
    return FolderPlan(checkpoint, HfModel(spec, stored, kv_cache), tokens, place)


def _recipe(origin: Origin, positions: int, tokenizer: Path | None) -> ServingRecipe:
    """Return how the repository is to serve; ValueError or UsageError when a value makes no sense.

    A window of more tokens than the model has positions, which engines may have, is cut to them.
    """
    ledger = origin.ledger
    stated = ledger.targets.get("recipe.max_seq_len")
    if stated is not None and int(stated) > positions:
        ledger.aim("recipe.max_seq_len", str(positions), "the model has no more positions")
    # Targets are text, in JSON's form: a recipe's fields are numbers and booleans.
    fields = {name: json.loads(value) for name, value in ledger.of(RECIPE).items()}
    pairs = [
        f"{target}={value}"
        for target, value in ledger.targets.items()
        if not target.startswith(f"{RECIPE}.")
    ]
    settings = parse_settings(pairs, LLMAPI, LLM_ARGUMENTS)
    return ServingRecipe(**fields, tokenizer=tokenizer, settings=settings)
