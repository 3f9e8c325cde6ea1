"""Text on a real tritonserver: stop words, ends, chats and prompts, through both text models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.triton_repo.conftest import Served
from tests.triton_repo.test_server import LIMIT, assert_freed, long_answers
from tests.triton_repo.text_calls import Answered, RefusalError, ask, ask_in_time
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

START = "Complete the paragraph:"
PROMPT = f"{START} our solar system is"
TEMPLATE = f"{{{{ bos_token }}}}{START} {{{{ messages[-1]['content'] }}}}"
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")
COUNT = 60
Ask = Callable[..., Answered]


@dataclass(frozen=True)
class Talking:
    """A server whose model has a chat template and a second end id, and what it should say."""

    served: Served
    text: str  # to the end id
    end: str  # the text of the second end id
    count: int  # tokens of the text


@pytest.fixture(scope="module", params=NAMES)
def talking(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Talking]:
    """Serve a sample whose greedy text meets the second end id after some 40 tokens."""
    folder = tmp_path_factory.mktemp("talking")
    model = folder / "model"
    shutil.copytree(sample_folder(request.param), model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    ids = greedy(model, tokenizer)
    at = next(n for n in range(40, COUNT) if ids[n] not in ids[:n])
    change(model / "tokenizer_config.json", chat_template=TEMPLATE)
    change(model / "generation_config.json", eos_token_id=[tokenizer.eos_token_id, ids[at]])
    convert(str(model), folder / "checkpoint", ConvertOptions())
    emit_repository(folder / "checkpoint", folder / "repository", ServingRecipe(max_batch_size=4))
    with running_server(
        folder / "repository", ServerOptions(free_endpoints(), drain_s=3), timeout_s=600
    ) as server:
        served = Served(server.endpoints, model, server.pid)
        yield Talking(served, tokenizer.decode(ids[:at]), tokenizer.decode(ids[at]), at)


def greedy(folder: Path, tokenizer: Any) -> list[int]:
    """Return the ids that transformers generates."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    made: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return made


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Return each protocol."""
    return str(request.param)


@pytest.fixture(params=FRONT_MODELS)
def asked(request: pytest.FixtureRequest, talking: Talking, protocol: str) -> Ask:
    """Return a call of each text model by each protocol."""

    def call(text: str = PROMPT, **inputs: Any) -> Answered:
        given = {"text_input": text, "max_tokens": COUNT, **inputs}
        return ask(talking.served.endpoints, protocol, request.param, **given)

    return call


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_word_anywhere_in_the_text_ends_it_there(
    asked: Ask, talking: Talking, stream: bool
) -> None:
    """The words start and end inside tokens."""
    text = talking.text
    for start in (4, 11, 30):
        word = text[start : start + 9]
        answer = asked(stop_words=["never said", word], stream=stream)

        assert (answer.text, answer.finish_reason) == (text.split(word)[0], "stop")


def test_what_was_held_back_for_a_stop_word_comes_at_the_end(asked: Ask, talking: Talking) -> None:
    tail = talking.text[-5:]

    assert asked(stop_words=[f"{tail}{talking.end}!"], stream=True).text.startswith(talking.text)


@pytest.mark.parametrize("stream", [True, False])
def test_every_end_id_of_the_model_ends_the_text(
    asked: Ask, talking: Talking, stream: bool
) -> None:
    answer = asked(stream=stream)

    # As a stop word, which is what an end id beyond the first is, it may stay.
    assert answer.text.removesuffix(talking.end) == talking.text
    assert answer.finish_reason == "stop"


def test_a_chat_goes_through_the_models_template(asked: Ask, talking: Talking) -> None:
    chat = json.dumps([{"role": "user", "content": "our solar system is"}])

    for text in ("our solar system is", chat):
        answer = asked(text, apply_chat_template=True)
        assert answer.text.removesuffix(talking.end) == talking.text


@pytest.mark.parametrize(
    ("inputs", "prompt"),
    [
        ({}, ""),
        ({"exclude_input_in_output": True}, ""),
        ({"exclude_input_in_output": False}, PROMPT),
        ({"exclude_input_in_output": False, "stream": True}, ""),
    ],
    ids=["default", "without", "with", "streamed"],
)
def test_the_prompt_goes_before_the_answer_where_that_is_asked(
    asked: Ask, talking: Talking, inputs: dict[str, Any], prompt: str
) -> None:
    answer = asked(max_tokens=20, stop_words=["paragraph"], **inputs)

    assert answer.text.startswith(prompt + talking.text[:20])


@pytest.mark.parametrize("stream", [True, False])
def test_every_sequence_is_a_text_of_its_own(asked: Ask, talking: Talking, stream: bool) -> None:
    word = talking.text[30:39]
    answer = asked(num_return_sequences=3, stream=stream, stop_words=[word])

    for index in range(3):
        own = Answered([r for r in answer.responses if r["sequence_index"] == index])
        assert (own.text, own.finish_reason) == (talking.text.split(word)[0], "stop")


def test_only_the_end_of_an_answer_says_why_it_ended(asked: Ask, talking: Talking) -> None:
    answer = asked(max_tokens=5, stream=True)

    reasons = [r["finish_reason"] for r in answer.responses if r.get("finish_reason")]
    assert (reasons, len(answer.responses)) == (["length"], 5)


def test_statistics_come_where_they_are_asked_for(asked: Ask) -> None:
    answer = asked(max_tokens=3, stream=True, return_log_probs=True)

    assert all(r["cum_log_probs"] <= 0 for r in answer.responses)
    assert len(answer.responses) == 3
    assert "cum_log_probs" not in asked(max_tokens=3).responses[0]


def test_a_bias_pushes_words(asked: Ask) -> None:
    words = {"embedding_bias_words": ["star"], "embedding_bias_weights": [1000.0]}

    assert set(asked(max_tokens=6, **words).text) <= set("star")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"embedding_bias_words": ["x"]}, "embedding_bias_weights"),
        ({"stop_words": ["x" * 20000]}, "stop_words"),
        ({"text": '[{"role": "user"}]', "apply_chat_template": True}, "role or content"),
    ],
    ids=["bias", "stop words", "chat"],
)
def test_what_is_wrong_is_refused_by_the_tensors_name(
    asked: Ask, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusalError, match=words):
        asked(**inputs)


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_time_is_up(talking: Talking, model: str, stream: bool) -> None:
    """Over gRPC: Triton's generate over HTTP takes no timeout."""
    before = long_answers(talking.served)
    # Nothing ends it but the limit.
    given = {"text_input": PROMPT, "max_tokens": LIMIT, "end_id": 0, "stream": stream}
    answer = ask_in_time(talking.served.endpoints, model, **given)

    assert answer.finish_reason == "timeout"
    assert answer.text
    assert_freed(talking.served, before)


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("request_id", ["", "same"])
def test_a_stop_word_frees_the_slot_while_a_namesake_goes_on(
    talking: Talking, model: str, request_id: str
) -> None:
    endpoints, before = talking.served.endpoints, long_answers(talking.served)
    # Nothing ends it but the limit.
    given = {"text_input": PROMPT, "max_tokens": LIMIT, "end_id": 0, "request_id": request_id}
    ask(endpoints, "grpc", model, stream=True, stop_words=[talking.text[4:13]], **given)

    assert_freed(talking.served, before)
