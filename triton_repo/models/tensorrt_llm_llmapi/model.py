"""Triton model `tensorrt_llm`, runtime llmapi: TensorRT-LLM's LLM class over the folder beside it.

Same tensors as TensorRT-LLM's own model; needs what NVIDIA's container has, nothing of ours. LLM
starts the processes of further GPUs itself, so one tritonserver is enough for any parallelism.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
import yaml
from minitron_models.llmapi.answer import Answer
from minitron_models.llmapi.request import Abilities, Asked, read_request
from minitron_models.readers import Readers
from minitron_models.requests import Sender, scalar

ARGUMENTS = "model.yaml"


class BusyError(Exception):
    """As many requests run and wait as may."""


class TritonPythonModel:
    """Called by Triton's Python backend; the requests live on a thread's event loop."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, which takes minutes."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        arguments = yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8"))
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._abilities = Abilities(
            every_penalty=arguments.get("sampler_type") == "TRTLLMSampler",
            guided=arguments.get("guided_decoding_backend") is not None,
            streaming=self._decoupled,
            beams=int(arguments.get("max_beam_width") or 1),
        )
        self._excludes_input = parameters["exclude_input_in_output"] == "true"
        batch = int(arguments["max_batch_size"])
        self._most = batch + int(parameters["max_queue_size"])
        # Triton deletes a family, and the gauges with it, when Python forgets it.
        self._family = _metric_family()
        self._flights = Flights(_gauge(self._family, args["model_name"], "active"))
        _gauge(self._family, args["model_name"], "max").set(batch)
        self._readers = Readers()
        self._llm = _load(arguments, folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmapi")
        self._thread.start()
        period_s = int(parameters["cancellation_check_period_ms"]) / 1000
        self._watch = self._start(self._flights.watch(period_s, self._readers))

    def execute(self, requests: list[Any]) -> None:
        """Start each request; the loop answers."""
        for request in requests:
            sender = self._readers.sender(request)
            try:
                self._take(request, sender)
            except ValueError as error:
                sender.fail(str(error), pb_utils.TritonError.INVALID_ARG)
            except BusyError as error:
                sender.fail(str(error), pb_utils.TritonError.UNAVAILABLE)

    def finalize(self) -> None:
        """End what is running and stop the processes of the model."""
        self._watch.cancel()
        self._start(self._flights.end_all()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._llm.shutdown()
        # Deleting them takes the server, which is gone by the time the interpreter ends.
        del self._flights, self._family

    def _start(self, work: Coroutine[Any, Any, None]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _take(self, request: Any, sender: Sender) -> None:
        request_id = request.request_id()
        if scalar(request, "stop", False):
            stream_id = scalar(request, "stream_id")
            if not request_id and stream_id is None:
                raise ValueError("stop needs the request id of the request to stop")
            self._loop.call_soon_threadsafe(self._flights.stop, request_id, stream_id)
            if self._decoupled:
                sender.close()
            else:
                sender.send({}, last=True)
            return
        asked = read_request(request, self._abilities, self._excludes_input)
        if len(self._flights) >= self._most:
            raise BusyError(f"{self._most} requests are running or waiting; try again later")
        self._start(self._serve(asked, self._flights.add(request_id, asked, sender)))

    async def _serve(self, asked: Asked, flight: Flight) -> None:
        """Answer one request to its end; whatever happens stays with it."""
        answer, sender = Answer(asked, flight.sender), flight.sender
        try:
            flight.begin()
            async with asyncio.timeout(asked.timeout_s):
                await self._generate(asked, answer)
        except TimeoutError:
            answer.end("timeout")
        except asyncio.CancelledError:
            if self._decoupled:
                sender.close()
            else:
                sender.fail("the request was cancelled", pb_utils.TritonError.CANCELLED)
        except ValueError as error:
            sender.fail(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            sender.fail(message, pb_utils.TritonError.INTERNAL)
        finally:
            self._flights.remove(flight)

    async def _generate(self, asked: Asked, answer: Answer) -> None:
        result = self._llm.generate_async(
            asked.prompt,
            sampling_params=_sampling_params(asked),
            streaming=asked.in_steps,
            cache_salt=_cache_salt(asked),
        )
        finished = False
        try:
            async for output in result:
                finished = output.finished
                if asked.in_steps or finished:
                    answer.take(output)
                if answer.ended:
                    break
        finally:
            if not finished:
                result.abort()


class Flight:
    """One request that was taken and has not ended; but for its making, the loop's."""

    def __init__(self, request_id: str, stream_id: int | None, sender: Sender) -> None:
        self.request_id = request_id
        self.stream_id = stream_id
        self.sender = sender
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def begin(self) -> None:
        """Note the task that serves it, which is the caller; CancelledError if it was stopped."""
        self._task = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError

    def stop(self) -> None:
        """End it, also before it began."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()


class Flights:
    """The requests that were taken and have not ended."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        # Triton's stub shares one message among the calls of a gauge, so the server would crash.
        self._counting = threading.Lock()
        self._flights: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, request_id: str, asked: Asked, sender: Sender) -> Flight:
        """Remember a request."""
        flight = Flight(request_id, asked.stream_id, sender)
        self._flights[id(flight)] = flight
        self._count(1)
        return flight

    def remove(self, flight: Flight) -> None:
        """Forget a request that has ended."""
        del self._flights[id(flight)]
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._gauge.increment(change)

    def stop(self, request_id: str, stream_id: int | None) -> None:
        """End the requests of a stream, else those that carry a client's id."""
        for flight in tuple(self._flights.values()):
            if stream_id is None:
                same = flight.request_id == request_id
            else:
                same = flight.stream_id == stream_id
            if same:
                flight.stop()

    async def watch(self, period_s: float, readers: Readers) -> None:
        """End requests whose clients left, as long as the model runs."""
        while True:
            await asyncio.sleep(period_s)
            gone = await asyncio.to_thread(readers.gone)
            for flight in tuple(self._flights.values()):
                if flight.stream_id in gone or flight.sender.is_cancelled():
                    flight.stop()

    async def end_all(self) -> None:
        """End every request and wait until they have."""
        while self._flights:
            for flight in tuple(self._flights.values()):
                flight.stop()
            await asyncio.sleep(0)


def _load(arguments: Mapping[str, Any], folder: Path) -> Any:
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi.llm_utils import update_llm_args_with_extra_dict

    # The way of TensorRT-LLM's own Triton model: nested records become their classes.
    known = update_llm_args_with_extra_dict({}, dict(arguments))
    return LLM(**{**known, "model": str(folder / arguments["model"])})


def _cache_salt(asked: Asked) -> str | None:
    """Return what keeps a request from others' KV cache: reused tokens have no context logits."""
    return uuid.uuid4().hex if "return_context_logits" in asked.wishes else None


def _sampling_params(asked: Asked) -> Any:
    from tensorrt_llm import SamplingParams
    from tensorrt_llm.llmapi import GuidedDecodingParams

    fields = dict(asked.sampling)
    if asked.guide:
        fields["guided_decoding"] = GuidedDecodingParams(**asked.guide)
    if asked.bias is not None:
        import torch

        fields["embedding_bias"] = torch.from_numpy(asked.bias)
    parameters = SamplingParams(**fields)
    if asked.bad_words:
        # LLM takes words of several ids as text only and keeps their ids here.
        parameters.bad, parameters._bad_word_ids = [], asked.bad_words
    return parameters


def _metric_family() -> Any:
    """Return the family of gauges under the name that TensorRT-LLM's own backend publishes."""
    return pb_utils.MetricFamily(
        name="nv_trt_llm_request_metrics",
        description="TRT LLM request metrics",
        kind=pb_utils.MetricFamily.GAUGE,
    )


def _gauge(family: Any, model: str, kind: str) -> Any:
    return family.Metric(labels={"model": model, "version": "1", "request_type": kind})
