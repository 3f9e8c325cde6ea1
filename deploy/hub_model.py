"""A model on the hub as the repository that Pods make of it at their start.

Of the hub config and tokenizer are read. Weights as large as theirs, which are a hole, then give
the very repository that the init containers will write, and so every number of the deployment.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG, WEIGHTS_NAME
from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.hf_output import HfModel
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.hub import HubRepository
from minitron_trt.convert.source.hub_config import is_hub_id, read_hub_spec
from minitron_trt.convert.source.quantization_config import QUANTIZATION_FILE, QUANTIZATION_KEYS
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.deploy.settings import CONVERTIBLE
from minitron_trt.errors import BadInputError, UnsupportedError, UsageError
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model to be fetched and converted, and over how many GPUs it is divided."""

    hub_id: str
    revision: str | None = None
    precision: str = "bf16"
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if not is_hub_id(self.hub_id):
            raise UsageError(
                f"--model {self.hub_id!r} is no hub id like nvidia/Minitron-4B-Base; a folder is "
                "deployed as a repository: minitron-trt triton-repo"
            )
        if self.precision not in CONVERTIBLE:
            raise UsageError(
                f"--precision {self.precision} is measured with text, which is nothing for every "
                f"start of a Pod; expected one of {', '.join(CONVERTIBLE)}, or convert once and "
                "use --storage"
            )

    @contextmanager
    def as_repository(self, token: str | None) -> Iterator[tuple[Path, str]]:
        """Yield a repository whose weights are a hole, and the commit that it is of.

        BadInputError where the hub does not give config and tokenizer.
        """
        hub = HubRepository(self.hub_id, self.revision, token)
        names = (CONFIG_NAME, GENERATION_CONFIG, QUANTIZATION_FILE, *TOKENIZER_FILES)
        snapshot = hub.snapshot(names)
        config = read_json(snapshot, CONFIG_NAME)
        quantized = next((key for key in QUANTIZATION_KEYS if key in config), None)
        if quantized or (snapshot / QUANTIZATION_FILE).is_file():
            raise UnsupportedError(
                f"{self.hub_id} is quantized already; convert it once, and deploy the repository "
                "of that: --storage"
            )
        # Of the same commit, though the branch may move meanwhile.
        spec = read_hub_spec(self.hub_id, revision=snapshot.name, token=token)
        with tempfile.TemporaryDirectory(prefix="minitron-trt-") as name:
            folder = Path(name, "model")
            folder.mkdir()
            model = HfModel(spec, PRECISIONS[self.precision])
            _write_hole(folder, model)
            model.write_configs(folder, config)
            tokenizer = SourceTokenizer.find(snapshot)
            if not tokenizer.files:
                raise BadInputError(f"{self.hub_id} has no tokenizer, which serving text needs")
            tokenizer.write(folder)
            if (snapshot / GENERATION_CONFIG).is_file():
                shutil.copyfile(snapshot / GENERATION_CONFIG, folder / GENERATION_CONFIG)
            repository = Path(name, "repository")
            emit_repository(
                folder, repository, ServingRecipe(tp=self.tp, pp=self.pp), runtime=LLMAPI
            )
            yield repository, snapshot.name


def _write_hole(folder: Path, model: HfModel) -> None:
    header, entries = model.lay_out(folder)
    path = folder / WEIGHTS_NAME
    path.write_bytes(header)
    # A sparse file: as long as the weights, and nearly nothing on the disk.
    os.truncate(path, max(entry.offset + entry.size_bytes for entry in entries))
