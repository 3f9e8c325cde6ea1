"""The process in which TensorRT works: python -m minitron_trt.build.tensorrt.worker REQUEST.

It is a process of its own so that a builder that crashes, hangs or runs out of memory ends nothing
else. REQUEST is JSON with the fields of `CompileRequest`. The engine goes to its path. Its log is
lines of a level, a tab and a message; the last one is ANSWER, a tab and JSON with the builder's
version, or with the error.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from minitron_trt.build.tensorrt.api import LIBRARIES, RTX, TARGETS, Network, Trt, make_logger
from minitron_trt.build.tensorrt.network_definition import NetworkLimits, define_network
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import MinitronError, ProcessError

ANSWER: Final = "ANSWER"
"""What the line of the worker's answer begins with, where lines of its log have a level."""


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What to compile, by which library, for which architecture, and where the engine goes."""

    checkpoint: Path
    sm: int
    limits: NetworkLimits
    plan: Path
    weights_bytes: int = 0
    library: str = RTX.package

    def to_json(self) -> str:
        """Return the request as the worker's argument."""
        record = {**asdict(self), "checkpoint": str(self.checkpoint), "plan": str(self.plan)}
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> CompileRequest:
        """Read the worker's argument."""
        record = json.loads(text)
        return cls(
            checkpoint=Path(record["checkpoint"]),
            sm=record["sm"],
            limits=NetworkLimits(**record["limits"]),
            plan=Path(record["plan"]),
            weights_bytes=record["weights_bytes"],
            library=record["library"],
        )


def build(request: CompileRequest) -> None:
    """Compile a checkpoint and write the engine; ProcessError has the builder's own line."""
    library = LIBRARIES[request.library]
    trt = library.load()
    logger, errors = make_logger(trt)
    builder = trt.Builder(logger)
    strongly_typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(strongly_typed))
    try:
        # The graph holds the weights that the network borrows.
        graph = define_network(trt, network, Checkpoint.open(request.checkpoint), request.limits)
        config = builder.create_builder_config()
        if library is RTX:
            # The number first: without it there is no place for index 0.
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, TARGETS[request.sm]), 0)
        config.add_optimization_profile(_profile(builder, network, request.limits))
        with request.plan.open("wb") as file:
            done = builder.build_serialized_network_to_stream(network, config, _writer(trt, file))
        del graph
    except ProcessError as error:
        raise ProcessError(_said(errors) or str(error)) from error
    if not done:
        raise ProcessError(_said(errors) or "the builder gave up without a reason")


def _said(errors: list[str]) -> str:
    """Return the builder's first complaint, which is the cause of the others, on one line."""
    return " ".join(errors[0].split()) if errors else ""


def _profile(builder: Any, network: Network, limits: NetworkLimits) -> Any:
    """Return the range of every input; the builder tunes for one token of every sequence."""
    profile = builder.create_optimization_profile()
    most = {"batch": limits.max_batch_size, "length": limits.max_input_len}
    best = {"batch": limits.max_batch_size, "length": 1}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        axes = [(tensor.get_dimension_name(axis), size) for axis, size in enumerate(tensor.shape)]
        shapes = (
            tuple(size if size >= 0 else sizes.get(name, 1) for name, size in axes)
            for sizes in ({}, best, most)
        )
        profile.set_shape(tensor.name, *shapes)
    return profile


def _writer(trt: Trt, file: BinaryIO) -> Any:
    base: Any = trt.IStreamWriter

    class PlanFile(base):  # type: ignore[misc]  # the library has no types
        """An engine's way to the disk, so that it is in memory once."""

        def write(self, data: bytes) -> int:
            """Write the next part and return its size."""
            return file.write(data)

    return PlanFile()


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}\t{' '.join(record.getMessage().split())}"


def main() -> None:
    """Serve the request on the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])
    try:
        request = CompileRequest.from_json(sys.argv[1])
        build(request)
    except MinitronError as error:
        _answer(error=str(error))
        raise SystemExit(error.exit_code) from None
    _answer(version=LIBRARIES[request.library].version)


def _answer(**record: str | None) -> None:
    # What native code printed last may have left its line unfinished.
    sys.stdout.write(f"\n{ANSWER}\t{json.dumps(record)}\n")


if __name__ == "__main__":
    main()
