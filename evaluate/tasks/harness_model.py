"""The model that lm-evaluation-harness asks, registered there as `minitron-trt`.

lm-eval 0.4 looks for no plugins: a name is known once the module that registers it is imported,
as this one is by `python -m minitron_trt.evaluate.tasks`, which has lm_eval's own options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from minitron_trt.artifacts import facts_as
from minitron_trt.checkpoint import CheckpointFacts
from minitron_trt.console import Console, ShowProgress
from minitron_trt.errors import BadInputError, MinitronError, UnsupportedError, UsageError
from minitron_trt.evaluate.evaluated_model import is_server, opened_checkpoint
from minitron_trt.evaluate.served_model import ServerSettings, connected
from minitron_trt.evaluate.tasks.questions import (
    Answers,
    Continuation,
    Likelihood,
    TaskPrompt,
    sampling_of,
)
from minitron_trt.spec import ModelSpec
from minitron_trt.triton_repo.contract.model_names import ENSEMBLE, TENSORRT_LLM

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
NAME: Final = "minitron-trt"
BATCH_SIZE: Final = 8
MAX_LENGTH: Final = 8192  # the cards: "works well within 8k"; a KV cache has a place for each
_MAX_GEN_TOKS: Final = 256  # where a task does not say, as lm-eval's own models


class ChatMessages(NamedTuple):
    """A conversation that a server is to make a prompt of, in the place of a prompt."""

    messages: str


class Tokens:
    """A model's tokenizer, as lm-eval's own model of Hugging Face folders uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.backend = tokenizer
        begin = tokenizer.bos_token_id
        self.prefix_id = int(tokenizer.eos_token_id if begin is None else begin)

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Return a text's tokens; None adds those around it unless it begins with one."""
        if special is None:
            special = not has_bos_prefix(text, self.backend.decode(self.prefix_id))
        return list(self.backend.encode(text, add_special_tokens=special))

    def encode_prompt(self, text: str, room: int) -> list[int]:
        """Return the last `room` tokens of a prompt."""
        return self.encode(text)[-room:]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=True))


@register_model(NAME)
class MinitronLM(TemplateLM):  # type: ignore[misc]
    """A checkpoint, model folder, GGUF file, hub id or server's URL, for lm-eval to ask.

    `close` ends what it holds. MinitronError says what is wrong with the model or the server.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        tokenizer: str | Path | None = None,
        batch_size: int | str | None = BATCH_SIZE,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        dtype: str = "float32",
        device: str | None = "cpu",
        server_model: str = TENSORRT_LLM,
        text_model: str = ENSEMBLE,
        server: ServerSettings | None = None,
        seed: int = 1234,
        progress: ShowProgress | None = None,
    ) -> None:
        """Open the model; arguments have the names of lm-eval's own models where it has them."""
        super().__init__()
        # Memory for the sequences is held from the start, so there is nothing to find out.
        self._batch_size = BATCH_SIZE if batch_size in (None, "auto") else int(str(batch_size))
        self._progress = progress or Console().progress
        self._seed = seed
        self._held = ExitStack()
        self._tokens: Tokens | None = None
        self.pretrained = pretrained
        self.spec: ModelSpec | None = None
        try:
            if is_server(pretrained):
                path = None if tokenizer is None else Path(tokenizer)
                settings = server or ServerSettings(model=server_model, tokenizer=path)
                self._open_server(settings, text_model, max_length)
            else:
                self._open_here(max_length, dtype=dtype, device=_device(device))
        except BaseException:
            self._held.close()
            raise

    def _open_here(self, max_length: int | None, *, dtype: str, device: str) -> None:
        from minitron_trt.evaluate.tasks.computed_answers import ComputedAnswers

        opened = self._held.enter_context(
            opened_checkpoint(self.pretrained, progress=self._progress)
        )
        checkpoint = opened.checkpoint
        self.spec = checkpoint.spec
        self._max_length = max_length or min(MAX_LENGTH, checkpoint.spec.max_positions)
        tokens = self._tokens = read_tokens(checkpoint.folder)
        most = max(tokens.backend.get_vocab().values(), default=0)
        if most >= checkpoint.spec.vocab:
            raise BadInputError(
                f"{self.pretrained}: the tokenizer has the id {most} and the model "
                f"{checkpoint.spec.vocab} ids; they are of different models"
            )
        model = opened.reference(
            slots=self._batch_size, context=self._max_length, dtype=dtype, device=device
        )
        told = facts_as(checkpoint.manifest, CheckpointFacts, checkpoint.folder).tokens
        ends = {self.eot_token_id, *told.eos_ids}
        self._answers: Answers = ComputedAnswers(model, tokens, sorted(ends))
        self.identity = f"{opened.identity} {dtype} {self._max_length}"

    def _open_server(
        self, settings: ServerSettings, text_model: str, max_length: int | None
    ) -> None:
        from minitron_trt.evaluate.tasks.served_answers import ServedAnswers

        logits = self._held.enter_context(connected(self.pretrained, settings))
        logits.client.interface(text_model)  # says at once that there is no server
        self._max_length = max_length or MAX_LENGTH
        path = settings.tokenizer_json
        self._tokens = None if path is None else read_tokens(path.parent)
        self._answers = ServedAnswers(
            logits,
            text_model=text_model,
            tokenizer_json=path,
            concurrency=self._batch_size,
        )
        self.identity = f"{self.pretrained} {settings.model} {text_model} {self._max_length}"

    def close(self) -> None:
        """Close a connection, remove a checkpoint that was made for the time."""
        self._held.close()

    @property
    def tokens(self) -> Tokens:
        """Return the tokenizer; UsageError where a server's was not named."""
        if self._tokens is None:
            raise UsageError(
                f"{self.pretrained} is a server, which does not say which tokens a text is; name "
                "the folder of its model's tokenizer (eval tasks --tokenizer, or "
                "--model_args tokenizer=)"
            )
        return self._tokens

    @property
    def tokenizer(self) -> Any:
        """Return transformers' tokenizer, None without one; lm-eval notes its special tokens."""
        return None if self._tokens is None else self._tokens.backend

    @property
    def tokenizer_name(self) -> str:
        """Return what tells prompts that are cached from those of other models."""
        return self.pretrained.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokens.backend.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that an empty context stands for."""
        return self.tokens.prefix_id

    @property
    def max_length(self) -> int:
        """Return how many tokens a sequence may have."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Return how many tokens an answer may have where a task does not say."""
        return _MAX_GEN_TOKS

    @property
    def batch_size(self) -> int:
        """Return how many sequences are computed at once."""
        return self._batch_size

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return a text's tokens, for lm-eval to tell contexts from continuations."""
        return self.tokens.encode(string, special=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:
        """Return a conversation as a prompt; a server without a tokenizer here has its own."""
        if self._tokens is None:
            return ChatMessages(json.dumps(chat_history, ensure_ascii=False))
        return self._tokens.backend.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval notes beside results."""
        return {"model_source": NAME, "model_name": self.pretrained}

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return of each context and continuation the log-likelihood, and whether it is greedy."""
        if any(isinstance(request.args[0], ChatMessages) for request in requests):
            self.tokens  # noqa: B018 - refuses
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = True,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        def keep(place: int, answer: Likelihood) -> None:
            # A window of a longer text is none of lm-eval's questions.
            if (texts := requests[place][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, tuple(answer))

        continuations = [self._fitted(*request[1:]) for request in requests]
        answers = self._answers.score(continuations)
        collected = self._collected(answers, len(requests), "score continuations", keep)
        return [(total, is_greedy) for total, is_greedy in collected]

    def _fitted(self, context: Sequence[int], tokens: Sequence[int]) -> Continuation:
        """Cut a context from its left so that it fits with its continuation."""
        if not 0 < len(tokens) <= self._max_length:
            raise BadInputError(
                f"a task asks for {len(tokens)} tokens to be scored; expected 1 to "
                f"{self._max_length}, the length that is set (--max-length)"
            )
        # The last token is not fed, only scored.
        room = self._max_length + 1 - len(tokens)
        return Continuation(tuple(context[-room:]), tuple(tokens))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's length."""
        windows = [
            (place, window)
            for place, request in enumerate(requests)
            for window in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self._max_length,
                    context_len=1,
                ),
            )
        ]
        answers = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (place, _), (total, _) in zip(windows, answers, strict=True):
            totals[place] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the answer to each prompt, up to what it is to stop at."""

        def keep(place: int, answer: str) -> None:
            self.cache_hook.add_partial("generate_until", requests[place].args, answer)

        # A seed each: HumanEval asks one prompt twenty times, for twenty answers.
        prompts = [
            self._prompt(request.args, self._seed + place) for place, request in enumerate(requests)
        ]
        answers = self._answers.generate(prompts)
        return self._collected(answers, len(requests), "generate answers", keep)

    def _prompt(self, arguments: tuple[Any, Mapping[str, Any]], seed: int) -> TaskPrompt:
        prompt, options = arguments
        options = dict(normalize_gen_kwargs(dict(options), _MAX_GEN_TOKS))
        end = None if self._tokens is None else self._tokens.backend.decode(self.eot_token_id)
        stops = handle_stop_sequences(options.pop("until"), eos=end)
        most = int(options.pop("max_gen_toks"))
        if not 0 < most < self._max_length:
            raise UsageError(
                f"a task asks for answers of {most} tokens; expected fewer than the "
                f"{self._max_length} that a sequence may have (--max-length)"
            )
        return TaskPrompt(
            text=prompt.messages if isinstance(prompt, ChatMessages) else prompt,
            max_tokens=most,
            stops=tuple(stops),
            sampling=sampling_of(options),
            seed=seed,
            messages=isinstance(prompt, ChatMessages),
        )

    def _collected(
        self,
        answers: Iterator[tuple[int, T]],
        total: int,
        label: str,
        keep: Callable[[int, T], None],
    ) -> list[T]:
        """Return answers in the order of their questions; each is kept as soon as it is there."""
        collected: dict[int, T] = {}
        with self._progress(label, total, "requests") as advance:
            for place, answer in answers:
                collected[place] = answer
                keep(place, answer)
                advance(1)
        return [collected[place] for place in range(total)]


def _device(asked: str | None) -> str:
    """Return where to compute: lm_eval asks for a GPU by default, and its own models do without."""
    import torch

    is_there = not str(asked).startswith("cuda") or torch.cuda.is_available()
    return asked if asked and is_there else "cpu"


def read_tokens(folder: Path) -> Tokens:
    """Return the tokenizer of a model's folder, as transformers reads it."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise BadInputError(
            f"{folder} has no tokenizer.json, by which texts become tokens; convert the model "
            "again with its tokenizer beside it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True)
    except MinitronError:
        raise
    except Exception as error:  # the library raises nothing more precise
        raise BadInputError(f"{folder} has a tokenizer that is not read ({error})") from error
    if tokenizer.eos_token_id is None:
        raise UnsupportedError(f"{folder} has a tokenizer without an eos_token, which ends answers")
    return Tokens(tokenizer)
