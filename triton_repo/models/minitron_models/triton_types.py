"""The types of what Triton's Python backend hands to a model; its own module declares none.

Only what the models use is declared. Nothing here is imported from Triton, so that the modules
which merely read numbers can be imported, and tested, where there is no Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
Outputs: TypeAlias = Mapping[str, NDArray[Any]]


class TritonTensor(Protocol):
    """An input or output with its value."""

    def name(self) -> str:
        """Return the name that config.pbtxt gives it."""
        ...

    def as_numpy(self) -> NDArray[Any]:
        """Return the value, its first axis the batch's; memory that the request owns."""
        ...


class TritonError(Protocol):
    """What is wrong, with Triton's code for it."""

    def message(self) -> str:
        """Return what a client is told."""
        ...

    def code(self) -> int:
        """Return one of the constants of pb_utils.TritonError."""
        ...


class TritonResponse(Protocol):
    """A response, one's own or another model's."""

    def output_tensors(self) -> Sequence[TritonTensor]:
        """Return the outputs; none in a response that is an error or only marks the end."""
        ...

    def has_error(self) -> bool:
        """Return whether it says what is wrong instead."""
        ...

    def error(self) -> TritonError:
        """Return what is wrong."""
        ...


class Cancellable(Protocol):
    """A request, or its response sender: either can be asked whether the client has left."""

    def is_cancelled(self) -> bool:
        """Return whether the client has left; costs a message to the server and back."""
        ...


class TritonSender(Cancellable, Protocol):
    """Sends the responses of a decoupled request."""

    def send(self, response: TritonResponse | None = None, flags: int = 0) -> None:
        """Send a response, or nothing but the flag that marks the end."""
        ...


class TritonRequest(Cancellable, Protocol):
    """A request to a model."""

    def inputs(self) -> Sequence[TritonTensor]:
        """Return the inputs that the client sent."""
        ...

    def request_id(self) -> str:
        """Return the client's id for it, "" without one; several clients may use the same."""
        ...

    def timeout(self) -> int:
        """Return how long it may take in microseconds, 0 for as long as it takes."""
        ...

    def requested_output_names(self) -> Sequence[str]:
        """Return the outputs that the client, or the ensemble, wants."""
        ...

    def get_response_sender(self) -> TritonSender:
        """Return what its responses are sent with."""
        ...


class Gauge(Protocol):
    """A Prometheus gauge, which Triton publishes with its own metrics."""

    def set(self, value: float) -> None:
        """Replace the value."""
        ...

    def increment(self, value: float) -> None:
        """Add to the value, also less than nothing."""
        ...


class Counter(Protocol):
    """A Prometheus counter."""

    def increment(self, value: float) -> None:
        """Add to the value."""
        ...


class Histogram(Protocol):
    """A Prometheus histogram."""

    def observe(self, value: float) -> None:
        """Count a value in its bucket."""
        ...


class MetricFamily(Protocol):
    """Metrics of one name, told apart by their labels; Triton deletes them with this object."""

    def Metric(  # noqa: N802  (Triton's own name)
        self, *, labels: Mapping[str, str], buckets: Sequence[float] | None = None
    ) -> Any:
        """Return a gauge, a counter or a histogram, as the family's kind is."""
        ...
