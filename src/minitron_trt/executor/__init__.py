"""Run requests against a model: in-flight batching, sampling, and the model as torch computes it.

Importing this package needs numpy only; `executor.weights` and `executor.reference` need torch.
"""

from minitron_trt.executor.requests import Event, FinishReason, Request, Timing
from minitron_trt.executor.sampling import Sampler, Sampling
from minitron_trt.executor.scheduler import Executor, Stats
from minitron_trt.executor.step import StepBatch, StepModel

__all__ = [
    "Event",
    "Executor",
    "FinishReason",
    "Request",
    "Sampler",
    "Sampling",
    "Stats",
    "StepBatch",
    "StepModel",
    "Timing",
]
