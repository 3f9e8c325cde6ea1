"""The runtime llmapi on a real tritonserver; a stand-in takes the place of TensorRT-LLM's LLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
import yaml
from tests.patience import PATIENCE_S, until
from tests.triton_repo.runtimes.runtime_calls import Runtime, prompt
from tests.triton_repo.runtimes.stand_in.llmapi_server import (
    PROMPT,
    Served,
    continued,
    serve,
    serve_knowing,
)
from tests.triton_repo.text_calls import Answered, RefusalError, ask

from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

FAULT_ID = 7  # on which the stand-in fails
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")
PROTOCOLS = ("grpc", "http")
WIDTH = 3  # of the beams


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose requests may ask for everything that this runtime knows but beams."""
    llm = {"sampler_type": "TRTLLMSampler", "guided_decoding_backend": "xgrammar"}
    with serve_knowing(tmp_path_factory.mktemp("llmapi"), llm) as served:
        yield served


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the other sample, which `migrate` made of one of the runtime reference."""
    folder = tmp_path_factory.mktemp("nemotron")
    with serve_knowing(folder, {}, "solar-nemotron", migrated=True) as served:
        yield served


@pytest.fixture(params=["served", "nemotron"], ids=NAMES)
def sample(request: pytest.FixtureRequest) -> Served:
    """A server of each sample."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def beaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that searches with beams."""
    llm = {"max_beam_width": str(WIDTH)}
    with serve_knowing(tmp_path_factory.mktemp("beams"), llm) as served:
        yield served


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    """Return each protocol."""
    return str(request.param)


@pytest.fixture(params=FRONT_MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Return each text model."""
    return str(request.param)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client of the text models."""
    with Client.connect(
        served.endpoints.grpc_url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
    ) as client:
        yield client


def joined(answers: list[dict[str, Any]]) -> list[int]:
    """Return the ids of every response, one after another."""
    return [i for answer in answers for i in answer["output_ids"].reshape(-1).tolist()]


def reasons(answers: list[dict[str, Any]]) -> list[str]:
    """Return the finish reasons that were sent."""
    return [a["finish_reason"].item().decode() for a in answers if "finish_reason" in a]


def say(served: Served, protocol: str, model: str, count: int = 30, **inputs: Any) -> Answered:
    """Return what a text model makes of the prompt."""
    given = {"text_input": PROMPT, "max_tokens": count, **inputs}
    return ask(served.endpoints, protocol, model, **given)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_text_is_what_transformers_makes(
    sample: Served, protocol: str, model: str, stream: bool
) -> None:
    answer = say(sample, protocol, model, stream=stream)

    assert (answer.text, answer.finish_reason) == (sample.text, "length")
    assert (len(answer.responses) > 3) == stream


def test_text_ends_before_a_stop_word_of_several_tokens(
    client: Client, served: Served, model: str
) -> None:
    word = served.text[20:32]

    text = client.generate(GenerateRequest(PROMPT, max_tokens=30, model=model, stop_words=(word,)))

    assert text == served.text[:20]


def test_a_bias_pushes_words(served: Served, protocol: str, model: str) -> None:
    words = {"embedding_bias_words": ["star"], "embedding_bias_weights": [1000.0]}

    assert set(say(served, protocol, model, 6, **words).text) <= set("star")


def test_a_text_has_its_least_tokens(served: Served, protocol: str, model: str) -> None:
    ends: dict[str, Any] = {"end_id": served.answer[3], "return_num_output_tokens": True}
    (short,) = say(served, protocol, model, **ends).responses
    (long,) = say(served, protocol, model, min_tokens=8, **ends).responses

    assert short["text_output"] == served.tokenizer.decode(served.answer[:3])
    assert (short["num_output_tokens"], short["finish_reason"]) == (3, "stop")
    assert long["num_output_tokens"] >= 8


def test_a_seed_decides_what_chance_says(served: Served, protocol: str, model: str) -> None:
    # So hot that 50 tokens are equally likely, whatever a processor makes of the logits.
    wild = {"temperature": 1e4, "top_k": 50, "min_tokens": 12}
    first, again, *others = (
        say(served, protocol, model, 12, seed=seed, **wild).text for seed in (1, 1, 2, 3)
    )
    likeliest = say(served, protocol, model, temperature=2.0, top_p=1e-6).text

    assert first == again
    assert len({first, *others}) == 3
    assert likeliest == served.text


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 1e3}, {"frequency_penalty": 1e3}, {"repetition_penalty": 1e6}],
    ids=lambda penalty: next(iter(penalty)),
)
def test_what_was_said_is_not_said_again_under_a_penalty(
    served: Served, protocol: str, model: str, penalty: dict[str, Any]
) -> None:
    ids = joined(served.runtime.ask(served.ids, 30, **penalty))

    assert len({*ids, *served.ids}) == len(ids) + len(set(served.ids))
    assert say(served, protocol, model, **penalty).text == served.tokenizer.decode(
        ids, skip_special_tokens=True
    )


COUNTS = ("num_input_tokens", "num_output_tokens")
WISHES: dict[str, Any] = {
    f"return_{name}": True
    for name in ("log_probs", "context_logits", "generation_logits", "perf_metrics", *COUNTS)
}
TIMES = ("arrival", "first_scheduled", "first_token", "last_token")
STATISTICS = {
    "kv_cache_alloc_new_blocks": 1,
    "kv_cache_reused_blocks": 2,
    "kv_cache_alloc_total_blocks": 3,
    "acceptance_rate": 0.5,
    "total_accepted_draft_tokens": 4,
    "total_draft_tokens": 8,
}
"""What the stand-in always says."""


def test_statistics_come_with_a_text(served: Served, protocol: str, model: str) -> None:
    (answer,) = say(served, protocol, model, 4, **WISHES).responses

    assert answer["cum_log_probs"] == pytest.approx(sum(answer["output_log_probs"]))
    assert len(answer["output_log_probs"]) == 4
    assert likeliest(answer["generation_logits"], 4) == served.answer[:4]
    assert likeliest(answer["context_logits"], len(served.ids))[-1] == served.answer[0]
    assert [answer[name] for name in COUNTS] == [len(served.ids), 4]
    assert {name: answer[name] for name in STATISTICS} == STATISTICS
    times = [answer[f"{name}_time_ns"] for name in TIMES]
    assert times == sorted(times)
    assert times[0] > 0


def likeliest(logits: list[float], rows: int) -> list[int]:
    """Return the id with the highest logit of each row."""
    found: list[int] = np.array(logits).reshape(rows, -1).argmax(-1).tolist()
    return found


def test_each_piece_of_a_stream_has_the_logits_of_its_tokens(served: Served) -> None:
    answers = served.runtime.ask(served.ids, 4, streaming=True, return_generation_logits=True)

    logits = [a["generation_logits"] for a in answers if a["output_ids"].size]
    assert np.concatenate(logits, 2).argmax(-1)[0, 0].tolist() == served.answer[:4]


def test_logits_are_those_of_the_tokens_before_a_stop_word(served: Served) -> None:
    stop = [[[*served.answer[4:7]], [3, -1, -1]]]
    (answer,) = served.runtime.ask(
        served.ids, 20, stop_words_list=[stop[0]], return_generation_logits=True
    )

    assert answer["generation_logits"].argmax(-1)[0, 0].tolist() == served.answer[:7]


def beams_of_several_lengths(served: Served) -> tuple[int, dict[str, Any]]:
    """Return an end id that some beams meet sooner than others, and the beams."""
    (first,) = served.runtime.ask(served.ids, 8, beam_width=WIDTH)
    for end_id in dict.fromkeys(joined([first])):
        (answer,) = served.runtime.ask(
            served.ids, 8, beam_width=WIDTH, end_id=end_id, return_log_probs=True
        )
        if len({*answer["sequence_length"][0].tolist()}) > 1 and answer["sequence_length"].all():
            return end_id, answer
    raise AssertionError("all beams are of one length whatever ends them")


def test_beams_are_those_that_transformers_finds(beaming: Served) -> None:
    inputs = {"input_ids": torch.tensor([beaming.ids])}
    how: dict[str, Any] = {"num_return_sequences": WIDTH, "length_penalty": 0.0, "use_cache": False}
    ids = continued(beaming.runtime.model, inputs, 8, num_beams=WIDTH, **how)
    (answer,) = beaming.runtime.ask(beaming.ids, 8, beam_width=WIDTH, **WISHES)

    assert answer["output_ids"][0].tolist() == ids[:, len(beaming.ids) :].tolist()
    assert answer["sequence_length"].tolist() == [[8] * WIDTH]
    assert answer["generation_logits"].shape[:3] == (1, WIDTH, 8)
    assert answer["context_logits"].shape[:2] == (1, len(beaming.ids))
    assert answer["num_output_tokens"].item() == 8 * WIDTH
    scores = answer["cum_log_probs"][0].tolist()
    assert scores == pytest.approx(answer["output_log_probs"][0].sum(-1))
    assert scores == sorted(scores, reverse=True)


def test_a_beam_that_ends_sooner_is_filled_up(beaming: Served) -> None:
    end_id, answer = beams_of_several_lengths(beaming)

    for row, log_probs, length in zip(
        *(answer[name][0].tolist() for name in ("output_ids", "output_log_probs")),
        answer["sequence_length"][0].tolist(),
        strict=True,
    ):
        assert end_id not in row
        assert set(row[length:]) | set(log_probs[length:]) <= {-1}
        assert min(row[:length]) >= 0


def test_each_beam_is_a_text_without_what_fills_it_up(
    beaming: Served, protocol: str, model: str
) -> None:
    end_id, direct = beams_of_several_lengths(beaming)
    rows = zip(direct["output_ids"][0], direct["sequence_length"][0].tolist(), strict=True)
    texts = [beaming.tokenizer.decode(row[:length]) for row, length in rows]
    asked: dict[str, Any] = {"beam_width": WIDTH, "end_id": end_id, "return_log_probs": True}
    (answer,) = say(beaming, protocol, model, 8, **asked).responses
    (best,) = say(beaming, protocol, model, 8, num_return_sequences=1, **asked).responses

    assert answer["text_output"] == texts
    assert answer["cum_log_probs"] == pytest.approx(direct["cum_log_probs"][0].tolist())
    assert best["text_output"] == texts[0]


def test_a_stop_word_ends_each_beam_by_itself(beaming: Served, protocol: str, model: str) -> None:
    (whole,) = say(beaming, protocol, model, 8, beam_width=WIDTH).responses
    word = whole["text_output"][1][10:15]
    (cut,) = say(beaming, protocol, model, 8, beam_width=WIDTH, stop_words=[word]).responses

    assert cut["text_output"] == [text.split(word)[0] for text in whole["text_output"]]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "beam_width is 1, but max_beam_width is 3 in model.yaml"),
        ({"beam_width": 2}, "beam_width is 2, but max_beam_width is 3"),
        ({"beam_width": WIDTH, "stream": True}, "streaming is true, but beam_width is 3"),
        ({"beam_width": WIDTH, "length_penalty": 0.5}, "len_penalty is 0.5"),
    ],
    ids=str,
)
def test_what_beams_cannot_be_is_refused_by_name(
    beaming: Served, protocol: str, model: str, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusalError, match=words):
        say(beaming, protocol, model, 4, **inputs)


def test_tokens_come_as_they_are_made_and_the_last_says_why(served: Served) -> None:
    answers = served.runtime.ask(served.ids, 5, streaming=True, stream_id=2**63 + 1)

    assert joined(answers) == served.answer[:5]
    assert [a["stream_id"].item() for a in answers] == [2**63 + 1] * len(answers)
    assert reasons(answers) == ["length"]


def test_words_of_several_ids_end_and_shun(served: Served) -> None:
    stop = [[[*served.answer[4:7]], [3, -1, -1]]]
    (stopped,) = served.runtime.ask(served.ids, 20, stop_words_list=[stop[0]])
    bad = [[[*served.answer[4:6]], [2, -1]]]
    (shunned,) = served.runtime.ask(served.ids, 7, bad_words_list=[bad[0]])

    assert joined([stopped]) == served.answer[:7]
    assert reasons([stopped]) == ["stop"]
    assert joined([shunned])[:5] == served.answer[:5]
    assert joined([shunned])[5] != served.answer[5]


def test_what_was_asked_for_comes_along(served: Served) -> None:
    (answer,) = served.runtime.ask(served.ids, 4, **WISHES)

    assert answer["output_log_probs"].shape == (1, 1, 4)
    assert answer["cum_log_probs"].item() == pytest.approx(answer["output_log_probs"].sum())
    assert answer["context_logits"].argmax(-1)[0, -1] == served.answer[0]
    assert answer["generation_logits"].argmax(-1)[0, 0].tolist() == served.answer[:4]
    assert [answer[name].item() for name in COUNTS] == [len(served.ids), 4]
    assert answer["kv_cache_alloc_total_blocks"].item() == 3
    assert answer["last_token_time_ns"].item() > answer["arrival_time_ns"].item() > 0


def test_without_wishes_nothing_comes_but_tokens(served: Served) -> None:
    (answer,) = served.runtime.ask(served.ids, 2, exclude_input_in_output=False)

    assert answer.keys() == {"output_ids", "sequence_length", "finish_reason"}
    assert joined([answer]) == [*served.ids, *served.answer[:2]]


def test_several_sequences_are_told_apart(served: Served) -> None:
    answers = served.runtime.ask(
        served.ids, 6, num_return_sequences=3, temperature=2.0, runtime_top_k=20, seed=4
    )

    assert [a["sequence_index"].item() for a in answers] == [0, 1, 2]
    assert [a["batch_index"].item() for a in answers] == [0, 0, 0]
    assert len({tuple(joined([a])) for a in answers}) > 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"beam_width": 2}, "beam_width is 2"),
        ({"lora_task_id": 1}, "lora_task_id"),
        ({"retention_decode_priority": 1}, "retention_decode_priority"),
        ({"runtime_top_p": 1.5}, "top_p=1.5"),
        ({"num_return_sequences": 2}, "does not allow multiple returns"),
        ({"guided_decoding_guide_type": "haiku"}, "'haiku'; expected one of json, json_schema"),
        ({"guided_decoding_guide_type": "regex"}, "a regex guide needs its text"),
        (
            {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[ab]+"},
            r"does not guide: GuidedDecodingParams\(json=None, regex='\[ab\]\+'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_it_cannot_do_is_refused_by_name(
    served: Served, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(grpc.InferenceServerException, match=words):
        served.runtime.ask(served.ids, 4, **inputs)


def test_a_fault_ends_its_request_alone(served: Served) -> None:
    with pytest.raises(grpc.InferenceServerException, match="RuntimeError: the stand-in was asked"):
        served.runtime.ask([FAULT_ID], 4)

    assert joined(served.runtime.ask(served.ids, 3)) == served.answer[:3]


LONG = {"temperature": 1.0, "runtime_top_k": 50, "streaming": True}


def active(served: Served) -> int:
    """Return how many requests the model works on, from its Prometheus metric."""
    import urllib.request

    with urllib.request.urlopen(served.runtime.metrics_url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    (found,) = (line for line in lines if 'request_type="active"' in line)
    return int(float(found.rpartition(" ")[2]))


def wait_until(served: Served, count: int) -> None:
    """Wait until so many requests run."""
    until(lambda: active(served) == count)


def test_leaving_a_stream_ends_it(served: Served) -> None:
    with served.runtime.open(**prompt(served.ids, 1900), **LONG) as answers:
        answers.get(timeout=PATIENCE_S)
        assert active(served) == 1

    wait_until(served, 0)


@pytest.mark.parametrize("by", ["request_id", "stream_id"])
def test_stop_ends_the_request_that_it_names(served: Served, by: str) -> None:
    name: dict[str, Any] = {by: "mine" if by == "request_id" else 77}
    with served.runtime.open(**prompt(served.ids, 1900), **LONG, **name) as answers:
        answers.get(timeout=PATIENCE_S)
        assert served.runtime.ask([1], 1, stop=True, **name) == []

        wait_until(served, 0)


def test_time_is_up_when_the_client_says_so(served: Served) -> None:
    answers = served.runtime.ask(served.ids, 1900, **LONG, timeout_us=400_000)

    assert reasons(answers) == ["timeout"]
    assert len(joined(answers)) < 1900


def test_too_many_requests_are_refused_and_the_others_go_on(served: Served) -> None:
    with (
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG) as last,
    ):
        last.get(timeout=PATIENCE_S)
        wait_until(served, 4)
        with pytest.raises(grpc.InferenceServerException, match="4 requests are running"):
            served.runtime.ask(served.ids, 1)

    wait_until(served, 0)
    assert joined(served.runtime.ask(served.ids, 3)) == served.answer[:3]


def test_short_requests_by_the_hundred_are_all_counted(served: Served) -> None:
    """Two of the model's threads count them; the server crashed when both did at once."""
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: served.runtime.ask(served.ids, 1), range(300)))

    assert all(joined(answer) == served.answer[:1] for answer in answers)
    wait_until(served, 0)


def test_without_streams_one_response_answers_and_more_are_refused(tmp_path: Path) -> None:
    with (
        serve(tmp_path, ServingRecipe(decoupled=False, bls_instances=1)) as server,
        Client.connect(
            server.endpoints.grpc_url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
        ) as client,
    ):
        url = server.endpoints.grpc_url.removeprefix("grpc://")
        runtime = Runtime(url, "", tmp_path, server.pid)
        assert joined(runtime.ask([5, 6], 3))[:2] == [5, 6]
        for inputs, words in (
            ({"streaming": True}, "the model is not decoupled"),
            ({"num_return_sequences": 2, "runtime_top_k": 5}, "the model is not decoupled"),
            ({"repetition_penalty": 1.2}, "sampler_type: TRTLLMSampler"),
            ({"bad_words_list": [[[1], [1]]]}, "sampler_type: TRTLLMSampler"),
            ({"guided_decoding_guide_type": "json"}, "no guided_decoding_backend"),
        ):
            with pytest.raises(grpc.InferenceServerException, match=words):
                runtime.ask([5, 6], 3, **inputs)
        # The client reads that the model has one response, and does not ask for more.
        whole = client.generate(GenerateRequest(PROMPT, max_tokens=2, stream=False))
        assert client.generate(GenerateRequest(PROMPT, max_tokens=2)) == whole != ""


def test_arguments_lie_in_model_yaml(tmp_path: Path) -> None:
    settings = {"llm": {"kv_cache_config.free_gpu_memory_fraction": "0.5", "dtype": "bfloat16"}}
    recipe = ServingRecipe(tp=2, pp=2, max_seq_len=1024, settings=settings)
    emit_repository(sample_folder("solar-llama"), tmp_path / "r", recipe)

    assert yaml.safe_load((tmp_path / "r/tensorrt_llm/1/model.yaml").read_text()) == {
        "model": "model",
        "backend": "pytorch",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_batch_size": 64,
        "max_seq_len": 1024,
        "stream_interval": 1,
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.5},
        "dtype": "bfloat16",
    }
    facts = json.loads((tmp_path / "r/minitron.json").read_text())
    assert (facts["tp"], facts["pp"], facts["world_size"]) == (2, 2, 4)
