"""Chat templates for models that have none on the server: by name, of a file or of a tokenizer.

A base model was not trained on conversations. The plain templates have the turns of the instruct
models of its family, in tokens of its own vocabulary: what a finetune is most likely to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.records import read_record

if TYPE_CHECKING:
    from minitron_trt.triton_repo.models.minitron_models.chat_template import ChatTemplate

PLAIN: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # The start of a next turn, too: a base model may write it without having ended its own.
        "llama": ("<|eot_id|>", "<|start_header_id|>"),
        "nemotron": ("<extra_id_1>",),
        "mistral": ("[INST]",),
    }
)
"""The plain templates by family, with what ends an answer beside the model's own end."""

EXPECTED: Final = "expected a jinja file, a tokenizer's folder, or one of " + ", ".join(PLAIN)
"""What `read_template` takes, in words."""

_CONFIG: Final = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Makes a prompt of messages, by jinja's `source`; `stop_words` are to end its answer."""

    template: ChatTemplate
    source: str
    stop_words: tuple[str, ...] = ()

    def render(self, messages: Iterable[Mapping[str, Any]]) -> str:
        """Return the prompt that an answer goes on from; whatever the template raises."""
        return self.template.render(messages)


def read_template(choice: str) -> PromptTemplate:
    """Return the template of a family's name, a jinja file or a tokenizer's folder.

    The tokens that a model wants at the begin are added where the prompt is tokenized, so a
    template finds no `bos_token` here. UsageError when it cannot be used.
    """
    path = Path(choice)
    try:
        if choice in PLAIN:
            source = resources.files(__name__).joinpath(f"{choice}.jinja").read_text("utf-8")
            return _checked(source, {}, PLAIN[choice])
        if path.is_dir():
            return _of_folder(path)
        return _checked(path.read_text(encoding="utf-8"), {})
    except FileNotFoundError as error:
        # Perhaps a family's name, misspelt: the names are said.
        raise _unusable(choice, f"no such file; {EXPECTED}") from error
    except (OSError, ValueError) as error:
        raise _unusable(choice, str(error)) from error


def _unusable(choice: str, why: str) -> UsageError:
    return UsageError(f"the chat template {choice} cannot be used: {why}")


def _of_folder(folder: Path) -> PromptTemplate:
    from minitron_trt.triton_repo.models.minitron_models.template_source import template_source

    path = folder / _CONFIG
    try:
        config = read_record(path, dict[str, Any]) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    source = template_source(folder, config)
    if source is None:
        raise ValueError("the tokenizer has none")
    return _checked(source, {name: text for name, text in map(_token, config.items()) if text})


def _token(field: tuple[str, Any]) -> tuple[str, str]:
    """Return a field's name with the special token in it, "" where there is none."""
    name, token = field
    text = token.get("content") if isinstance(token, dict) else token
    is_token = name.endswith("_token") and name != "bos_token" and isinstance(text, str)
    return name, str(text) if is_token else ""


def _checked(
    source: str, special_tokens: Mapping[str, str], stop_words: tuple[str, ...] = ()
) -> PromptTemplate:
    """Return a template that has been tried; ValueError when it fails."""
    try:
        from minitron_trt.triton_repo.models.minitron_models.chat_template import ChatTemplate
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "chat", "a chat template") from error
    template = PromptTemplate(ChatTemplate(source, special_tokens), source, stop_words)
    # Before anybody waits for an answer: most faults of a template show with one message.
    try:
        template.render([{"role": "user", "content": "Hello"}])
    except Exception as error:  # a template may raise anything, by its own words or a fault in it
        raise ValueError(str(error)) from error
    return template
