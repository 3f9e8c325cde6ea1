"""A model on the hub, read by its config.json alone: no weights are fetched."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME
from minitron_trt.convert.source.hf_config import HfConfig, read_spec
from minitron_trt.convert.source.locate import HUB_ID, hub_errors
from minitron_trt.convert.source.weight_files import read_json
from minitron_trt.errors import BadInputError
from minitron_trt.spec import ModelSpec

_QUERY: Final = "model.layers.0.self_attn.q_proj.weight"

log = logging.getLogger(__name__)


def is_hub_id(source: str) -> bool:
    """Return whether a source has the form `owner/name`."""
    hub_id = HUB_ID.fullmatch(source)
    return hub_id is not None and hub_id[2] is None


def read_hub_spec(repo: str, *, revision: str | None, token: str | None) -> ModelSpec:
    """Return the facts of a model on the hub, or of one in the hub's cache.

    Where config.json states no head size, the headers of its safetensors files do. BadInputError
    when the hub does not give them.
    """
    import huggingface_hub
    from huggingface_hub import errors

    with hub_errors(repo, revision):
        try:
            path = huggingface_hub.hf_hub_download(
                repo, CONFIG_NAME, revision=revision, token=token
            )
        except errors.RemoteEntryNotFoundError as error:
            raise BadInputError(f"{repo} has no {CONFIG_NAME} on the hub") from error
    config = HfConfig(read_json(Path(path).parent, CONFIG_NAME))
    stated = config.head_size
    return read_spec(
        config, _head_size(repo, config, revision, token) if stated is None else stated
    )


def _head_size(repo: str, config: HfConfig, revision: str | None, token: str | None) -> int:
    """Return the head size that the weights have; hidden // heads is only a guess at it."""
    import huggingface_hub
    from huggingface_hub import errors

    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    with hub_errors(repo, revision):
        try:
            files = huggingface_hub.get_safetensors_metadata(repo, revision=revision, token=token)
            shape = files.files_metadata[files.weight_map[_QUERY]].tensors[_QUERY].shape
            return int(shape[0]) // heads
        except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, KeyError):
            pass
    if hidden % heads:
        raise BadInputError(
            f"{repo}: {CONFIG_NAME} states no head size and its {heads} heads do not divide "
            f"{hidden}; download the model and pass its folder"
        )
    log.warning("%s: config.json states no head size; %d is assumed", repo, hidden // heads)
    return hidden // heads
