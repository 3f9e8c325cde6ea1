"""What Dynamo's frontend must know of a model, as the folder that it reads such things from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG
from minitron_trt.chat_templates import PLAIN, read_template
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.records import read_record
from minitron_trt.triton_repo.contract.model_names import PREPROCESSING
from minitron_trt.triton_repo.models.minitron_models.chat_template import ChatTemplate
from minitron_trt.triton_repo.models.minitron_models.template_source import template_source
from minitron_trt.triton_repo.parameters import parse_end_ids
from minitron_trt.triton_repo.serving.model_limits import read_limits
from minitron_trt.triton_repo.serving.served_repository import ServedRepository

log = logging.getLogger(__name__)

_TOKENIZER: Final = "tokenizer.json"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE: Final = "chat_template.jinja"
# In small letters or capitals. TensorRT-LLM's preprocessing has the same words, and adds the tokens
# for any that it does not know.
_OFF: Final = ("false", "0", "f", "n", "no")
# Dynamo reads every model's template, also where only completions are offered.
_NO_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as Dynamo's router and frontend see it.

    `generator` is its name on Triton. `start_ids` are what its tokenizer puts before a text, which
    Dynamo's does not; `end_ids` end a text. `template` makes a prompt of messages, None where the
    model cannot chat. Lengths are in tokens.
    """

    name: str
    generator: str
    architecture: str
    tokenizer: Path
    context_length: int
    batch: int
    vocab: int
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    template: str | None

    @property
    def endpoint_types(self) -> str:
        """Return OpenAI's services that the model is good for, in Dynamo's words."""
        return "completions" if self.template is None else "chat,completions"

    def write(self, folder: Path) -> None:
        """Make the folder with the files that Dynamo reads: tokenizer, config and template."""
        folder.mkdir()
        shutil.copyfile(self.tokenizer / _TOKENIZER_CONFIG, folder / _TOKENIZER_CONFIG)
        _copy_tokenizer(self.tokenizer / _TOKENIZER, folder / _TOKENIZER)
        config = {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "max_position_embeddings": self.context_length,
            "vocab_size": self.vocab,
        }
        ends = {"eos_token_id": list(self.end_ids)} if self.end_ids else {}
        _write_json(folder / CONFIG_NAME, config | ends)
        _write_json(folder / GENERATION_CONFIG, ends)
        source = _NO_TEMPLATE if self.template is None else self.template
        (folder / _TEMPLATE).write_text(source, encoding="utf-8")


def read_card(
    served: ServedRepository, *, name: str | None = None, chat_template: str | None = None
) -> ModelCard:
    """Return the card of a repository's model; its name is by default the folder's.

    `chat_template` is a choice as `read_template` takes it, in place of the tokenizer's own.
    UnsupportedError for a repository without a model of token ids.
    """
    limits = read_limits(served)
    if len(served.generators) != 1:
        raise UnsupportedError(
            f"{served.folder} has {len(served.generators)} engines; a worker of Dynamo has one "
            "model: run it on a repository for each"
        )
    tokenizer = _tokenizer(served)
    config = _record(tokenizer / _TOKENIZER_CONFIG)
    ends = _end_ids(served)
    read = _read_tokenizer(tokenizer / _TOKENIZER)
    start_ids = _start_ids(served, read)
    if chat_template is None:
        template = _own_template(tokenizer, config)
        if template is not None and not _writes_start(template, config, read, start_ids):
            # Dynamo does not tell a prompt of messages from another one.
            log.warning("completions begin without ids %s, as the chat template does", start_ids)
            start_ids = []
    else:
        template = read_template(chat_template).source
        # The model's files do not say that the marks of a plain template end its answers.
        ends += _ids_of(tokenizer, PLAIN.get(chat_template, ()))
    return ModelCard(
        name=name or served.folder.name,
        generator=served.generators[0],
        architecture=limits.spec.architecture,
        tokenizer=tokenizer,
        context_length=limits.max_seq_len,
        batch=limits.batch,
        vocab=limits.spec.vocab,
        start_ids=tuple(start_ids),
        end_ids=tuple(dict.fromkeys(ends)),
        template=template,
    )


def _parameter(served: ServedRepository, key: str) -> str:
    parameters = served.configs[PREPROCESSING].parameters if PREPROCESSING in served.configs else {}
    return parameters[key].string_value if key in parameters else ""


def _tokenizer(served: ServedRepository) -> Path:
    named = _parameter(served, "tokenizer_dir")
    # An absolute path, as upstream's repositories have it, stands for itself.
    folder = served.folder / PREPROCESSING / "1" / named
    if not named or not (folder / _TOKENIZER).is_file():
        raise BadInputError(
            f"{served.folder} has no {_TOKENIZER} where {PREPROCESSING} names its tokenizer_dir "
            f"({named or 'not at all'}); Dynamo's frontend needs one: make the repository with "
            "triton-repo"
        )
    return folder


def _end_ids(served: ServedRepository) -> tuple[int, ...]:
    text = _parameter(served, "end_ids")
    try:
        return parse_end_ids(text) if text else ()
    except ValueError as error:
        raise BadInputError(
            f"{served.folder}: end_ids of {PREPROCESSING} is {text!r}; expected a list of ids"
        ) from error


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        read = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise BadInputError(f"{path} is not read by tokenizers: {error}") from error
    # As preprocessing reads it.
    read.no_truncation()
    read.no_padding()
    return read


def _copy_tokenizer(path: Path, copy: Path) -> None:
    """Copy a tokenizer without what is for batches of training texts: cutting and filling up."""
    record = _record(path)
    if record.get("truncation") is None and record.get("padding") is None:
        shutil.copyfile(path, copy)
    else:
        _write_json(copy, record | {"truncation": None, "padding": None})


def _own_template(tokenizer: Path, config: Mapping[str, Any]) -> str | None:
    try:
        return template_source(tokenizer, config)
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _start_ids(served: ServedRepository, tokenizer: Tokenizer) -> list[int]:
    """Return what preprocessing puts before the ids of a text: mostly one id, for the begin."""
    if _parameter(served, "add_special_tokens").lower() in _OFF:
        return []
    for word in _words(tokenizer):
        bare = tokenizer.encode(word, add_special_tokens=False).ids
        if bare:
            whole = tokenizer.encode(word, add_special_tokens=True).ids
            # Not what goes behind the text, as some have it: an answer goes on from there.
            return whole[: whole.index(bare[0])]
    raise BadInputError(f"{served.folder}: its tokenizer makes ids of no word of its own")


def _words(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield words of which one has ids; to list all words takes a second, and is seldom needed."""
    yield "a"
    # Without an id for what it does not know, a tokenizer makes nothing of a letter that it lacks.
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    yield from sorted(tokenizer.get_vocab().keys() - added)


def _writes_start(source: str, config: Mapping[str, Any], read: Tokenizer, ids: list[int]) -> bool:
    """Say whether a tokenizer's own chat template writes these ids at the begin of a prompt."""
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
    }
    # What is null is not there for a template, as in preprocessing.
    tokens = {name: text for name, text in texts.items() if isinstance(text, str)}
    try:
        prompt = ChatTemplate(source, tokens).render([{"role": "user", "content": "a"}])
    except Exception as error:  # a template may raise anything, by its own words or a fault in it
        raise BadInputError(f"the tokenizer's chat template cannot be used: {error}") from error
    return read.encode(prompt, add_special_tokens=False).ids[: len(ids)] == ids


def _ids_of(tokenizer: Path, words: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ids of those words that are tokens of their own."""
    added = _record(tokenizer / _TOKENIZER).get("added_tokens", [])
    return tuple(token["id"] for token in added if token["content"] in words)


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInputError(f"{path} is missing; Dynamo's frontend reads a tokenizer by it")
    try:
        return read_record(path, dict[str, Any])
    except ValueError as error:
        raise BadInputError(f"{path} is damaged ({error}); expected a JSON object") from error


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
