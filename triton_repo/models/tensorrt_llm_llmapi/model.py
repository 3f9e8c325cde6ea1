"""Triton model `tensorrt_llm`, runtime llmapi: TensorRT-LLM's LLM class over the folder beside it.

Same tensors as TensorRT-LLM's own model; needs what NVIDIA's container has, nothing of this
package. LLM starts the processes of further GPUs itself, so one tritonserver is enough for any
parallelism.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
import yaml
from minitron_models.config_parameters import flag, parameter
from minitron_models.llmapi.llm_call import Abilities, LlmCall, read_llm_call
from minitron_models.llmapi.llm_responses import LlmResponses
from minitron_models.llmapi.running_calls import RunningCall, RunningCalls
from minitron_models.request_metrics import RequestMetrics
from minitron_models.stream_readers import StreamReaders
from minitron_models.triton_io import Sender, scalar
from minitron_models.triton_types import Gauge, MetricFamily, TritonRequest

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
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._abilities = Abilities(
            every_penalty=arguments.get("sampler_type") == "TRTLLMSampler",
            guided=arguments.get("guided_decoding_backend") is not None,
            streaming=self._decoupled,
            beams=int(arguments.get("max_beam_width") or 1),
        )
        self._excludes_input = flag(args, "exclude_input_in_output", False)
        batch = int(arguments["max_batch_size"])
        # LLM itself takes any number of requests, and has them wait without a word.
        self._most = batch + int(parameter(args, "max_queue_size"))
        # Triton deletes a family, and the gauges with it, when Python forgets it.
        self._family = _metric_family()
        self._calls = RunningCalls(_gauge(self._family, args["model_name"], "active"))
        _gauge(self._family, args["model_name"], "max").set(batch)
        self._metrics = RequestMetrics(args)
        self._readers = StreamReaders()
        self._llm = _load(arguments, folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmapi")
        self._thread.start()
        period_s = int(parameter(args, "cancellation_check_period_ms")) / 1000
        self._watch = self._start(self._calls.watch(period_s, self._readers))

    def execute(self, requests: list[TritonRequest]) -> None:
        """Start each request; the loop answers."""
        for request in requests:
            sender = self._readers.sender(request)
            try:
                self._take(request, sender)
            except ValueError as error:
                self._fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
            except BusyError as error:
                self._fail(sender, str(error), pb_utils.TritonError.UNAVAILABLE)

    def finalize(self) -> None:
        """End what is running and stop the processes of the model."""
        self._watch.cancel()
        self._start(self._calls.end_all()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._llm.shutdown()
        # Deleting them takes the server, which is gone by the time the interpreter ends.
        del self._calls, self._family, self._metrics

    def _fail(self, sender: Sender, message: str, code: int) -> None:
        self._metrics.failed(code)
        self._metrics.publish()
        sender.fail(message, code)

    def _start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _take(self, request: TritonRequest, sender: Sender) -> None:
        request_id = request.request_id()
        if scalar(request, "stop", False):
            stream_id = scalar(request, "stream_id")
            if not request_id and stream_id is None:
                raise ValueError("stop needs the request id of the request to stop")
            self._loop.call_soon_threadsafe(self._calls.stop, request_id, stream_id)
            if self._decoupled:
                sender.close()
            else:
                sender.send({}, last=True)
            return
        call = read_llm_call(request, self._abilities, self._excludes_input)
        if len(self._calls) >= self._most:
            raise BusyError(f"{self._most} requests are running or waiting; try again later")
        self._start(self._serve(call, self._calls.add(request_id, call.stream_id, sender)))

    async def _serve(self, call: LlmCall, running: RunningCall) -> None:
        """Answer one request to its end; whatever happens stays with it."""
        sender = running.sender
        responses = LlmResponses(call, sender, self._metrics)
        try:
            running.begin()
            async with asyncio.timeout(call.timeout_s):
                await self._generate(call, responses)
        except TimeoutError:
            responses.end("timeout")
        except asyncio.CancelledError:
            responses.note_cancelled()
            if self._decoupled:
                sender.close()
            else:
                sender.fail("the request was cancelled", pb_utils.TritonError.CANCELLED)
        except ValueError as error:
            self._fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._fail(sender, message, pb_utils.TritonError.INTERNAL)
        finally:
            self._calls.remove(running)
            self._metrics.publish()

    async def _generate(self, call: LlmCall, responses: LlmResponses) -> None:
        result = self._llm.generate_async(
            call.prompt,
            sampling_params=_sampling_params(call),
            streaming=call.in_steps,
            cache_salt=_cache_salt(call),
        )
        finished = False
        try:
            async for output in result:
                finished = output.finished
                if call.in_steps or finished:
                    responses.take(output)
                if responses.ended:
                    break
        finally:
            if not finished:
                result.abort()


def _load(arguments: Mapping[str, Any], folder: Path) -> Any:
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi.llm_utils import update_llm_args_with_extra_dict

    # The way of TensorRT-LLM's own Triton model: nested records become their classes.
    options = update_llm_args_with_extra_dict({}, dict(arguments))
    return LLM(**{**options, "model": str(folder / arguments["model"])})


def _cache_salt(call: LlmCall) -> str | None:
    """Return what keeps a request from others' KV cache: reused tokens have no context logits."""
    return uuid.uuid4().hex if "return_context_logits" in call.wishes else None


def _sampling_params(call: LlmCall) -> Any:
    from tensorrt_llm import SamplingParams
    from tensorrt_llm.llmapi import GuidedDecodingParams

    fields = dict(call.sampling)
    if call.guide:
        fields["guided_decoding"] = GuidedDecodingParams(**call.guide)
    if call.bias is not None:
        import torch

        fields["embedding_bias"] = torch.from_numpy(call.bias)
    parameters = SamplingParams(**fields)
    if call.bad_words:
        # LLM takes words of several ids as text only and keeps their ids here.
        parameters.bad, parameters._bad_word_ids = [], call.bad_words
    return parameters


def _metric_family() -> MetricFamily:
    """Return the family of gauges under the name that TensorRT-LLM's own backend publishes."""
    family: MetricFamily = pb_utils.MetricFamily(
        name="nv_trt_llm_request_metrics",
        description="TRT LLM request metrics",
        kind=pb_utils.MetricFamily.GAUGE,
    )
    return family


def _gauge(family: MetricFamily, model: str, kind: str) -> Gauge:
    gauge: Gauge = family.Metric(labels={"model": model, "version": "1", "request_type": kind})
    return gauge
