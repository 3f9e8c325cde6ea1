"""A model on the hub, read by its config.json alone: no weights are fetched."""

from __future__ import annotations

import logging
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.hf_config import HfConfig, read_spec
from minitron_trt.convert.source.hub import HUB_ID, HubRepository
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
    repository = HubRepository(repo, revision, token)
    path = repository.file(CONFIG_NAME)
    config = HfConfig(read_json(path.parent, CONFIG_NAME))
    stated = config.head_size
    return read_spec(config, _head_size(repository, config) if stated is None else stated)


def _head_size(repository: HubRepository, config: HfConfig) -> int:
    """Return the head size that the weights have; hidden // heads is only a guess at it."""
    heads, hidden = config.heads, config.integer("hidden_size")
    name = repository.name
    shape = repository.tensor_shape(_QUERY)
    if shape:
        return shape[0] // heads
    if hidden % heads:
        raise BadInputError(
            f"{name}: {CONFIG_NAME} states no head size and its {heads} heads do not divide "
            f"{hidden}; download the model and pass its folder"
        )
    log.warning("%s: config.json states no head size; %d is assumed", name, hidden // heads)
    return hidden // heads
