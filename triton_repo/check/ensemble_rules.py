"""The ensemble against its steps, by the rules of Triton's own check when it loads one."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitron_trt.triton_repo.check.model_on_disk import ModelFolder, names, type_name
from minitron_trt.triton_repo.check.report import Finding


@dataclass(frozen=True, slots=True)
class _End:
    """One end of an ensemble tensor: a step's or the ensemble's own."""

    model: str
    tensor: str
    path: str  # in the ensemble's config
    step: int | None = None  # None: the ensemble's own
    type: str = ""  # "" when the model's config is not known
    dims: tuple[int, ...] = ()
    batched: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims

    @property
    def label(self) -> str:
        return f"{self.tensor!r} of {self.model}"


@dataclass(slots=True)
class _Wire:
    """A tensor of the ensemble: who writes and who reads it."""

    writers: list[_End] = field(default_factory=list)
    readers: list[_End] = field(default_factory=list)


def check_ensemble(ensemble: ModelFolder, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    """Check the steps, the wires between them, and what may follow a decoupled model."""
    explained: set[tuple[str, str]] = set()
    for index, step in enumerate(ensemble.config.ensemble_scheduling.step):
        for finding in _check_step(ensemble, index, step, models.get(step.model_name)):
            explained |= finding.tensors
            yield finding
    for path, end in _unmapped(ensemble, models):
        yield ensemble.error(
            path,
            found=f"nothing goes to {end.tensor!r}, which {end.model} requires",
            remedy="map it",
            tensors=[(end.model, end.tensor)],
        )
    wires = _wires(ensemble, models)
    for name, wire in wires.items():
        yield from _check_types(ensemble, name, wire)
        yield from _check_writers(ensemble, name, wire)
    unmapped = [end for _, end in _unmapped(ensemble, models)]
    yield from _check_ends(ensemble, wires, explained, unmapped)
    # Else steps that wait for a tensor without a writer, just reported, would be called a cycle.
    if all(wire.writers for wire in wires.values()):
        yield from _check_order(ensemble, wires, models)


def _path(index: int, side: str = "", tensor: str = "") -> str:
    step = f"ensemble_scheduling.step[{index}]"
    return f'{step}.{side}["{tensor}"]' if tensor else f"{step}.{side}" if side else step


def _check_step(
    ensemble: ModelFolder, index: int, step: Any, model: ModelFolder | None
) -> Iterator[Finding]:
    if model is None:
        yield ensemble.error(
            _path(index, "model_name"),
            found=f"the repository has no model {step.model_name!r}",
            remedy="correct the name or add the model",
        )
        return
    for side in ("input_map", "output_map"):
        if not getattr(step, side):
            yield ensemble.error(
                _path(index, side),
                found="is empty",
                expected="at least one tensor",
            )
    if model.config is None:
        yield ensemble.note(
            _path(index),
            found=f"not checked against {model.file}, which does not parse",
        )
        return
    config, version = model.config, step.model_version
    if version not in (-1, *model.versions):
        yield ensemble.error(
            _path(index, "model_version"),
            found=f"asks for version {version} of {model.name}",
            expected=f"-1 for the latest, or one of {list(model.versions)}",
        )
    limit = ensemble.config.max_batch_size
    if 0 < config.max_batch_size < limit:
        yield ensemble.error(
            "max_batch_size",
            found=f"is {limit}, but {model.file} allows {config.max_batch_size}",
            expected=f"at most {config.max_batch_size}",
            remedy="make them equal",
        )
    yield from _check_maps(ensemble, index, step, model)


def _check_maps(
    ensemble: ModelFolder, index: int, step: Any, model: ModelFolder
) -> Iterator[Finding]:
    config = model.config
    sides = (("input_map", "input", config.input), ("output_map", "output", config.output))
    for side, kind, tensors in sides:
        known = names(tensors)
        for name in sorted(getattr(step, side)):
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                yield ensemble.error(
                    _path(index, side, name),
                    found=f"{model.file} has no {kind} {name!r}",
                    remedy=(
                        f"did you mean {close[0]!r}"
                        if close
                        else "remove the entry or add it there"
                    ),
                    tensors=[(model.name, name), *((model.name, other) for other in close)],
                )
    repeated = [t.name for t in config.output if [*map(_name, config.output)].count(t.name) > 1]
    for name in sorted({*repeated} & {*step.output_map}):
        yield ensemble.error(
            _path(index, "output_map", name),
            found=f"{model.file} has the output {name!r} twice, which Triton refuses in a step",
            expected="once",
            remedy="remove one there",
        )


def _unmapped(
    ensemble: ModelFolder, models: Mapping[str, ModelFolder]
) -> Iterator[tuple[str, _End]]:
    """Return the inputs that a step requires and nobody maps, with the place of the map."""
    for index, step in enumerate(ensemble.config.ensemble_scheduling.step):
        model = models.get(step.model_name)
        for tensor in model.config.input if model and model.config else ():
            if not tensor.optional and tensor.name not in step.input_map:
                end = _end(index, step, "input", tensor.name, model)
                yield _path(index, "input_map"), end


def _name(tensor: Any) -> str:
    return str(tensor.name)


def _wires(ensemble: ModelFolder, models: Mapping[str, ModelFolder]) -> dict[str, _Wire]:
    wires: dict[str, _Wire] = defaultdict(_Wire)
    config, batched = ensemble.config, ensemble.config.max_batch_size > 0
    for side in ("input", "output"):
        seen: set[str] = set()
        for index, tensor in enumerate(getattr(config, side)):
            dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            end = _End(
                model=ensemble.name,
                tensor=tensor.name,
                path=f"{side}[{index}]",
                step=None,
                type=type_name(tensor.data_type),
                dims=tuple(dims),
                batched=batched,
            )
            # Of two of one name Triton takes one, and loads the ensemble.
            if tensor.name not in seen:
                wire = wires[tensor.name]
                (wire.writers if side == "input" else wire.readers).append(end)
            seen.add(tensor.name)
    for index, step in enumerate(config.ensemble_scheduling.step):
        model = models.get(step.model_name)
        for name, target in sorted(step.input_map.items()):
            wires[target].readers.append(_end(index, step, "input", name, model))
        for name, target in sorted(step.output_map.items()):
            wires[target].writers.append(_end(index, step, "output", name, model))
    return dict(wires)


def _end(index: int, step: Any, side: str, name: str, model: ModelFolder | None) -> _End:
    path = _path(index, f"{side}_map", name)
    if model is None or model.config is None:
        return _End(model=step.model_name, tensor=name, path=path, step=index)
    tensor = next((t for t in getattr(model.config, side) if t.name == name), None)
    if tensor is None:
        return _End(model=step.model_name, tensor=name, path=path, step=index)
    # A step's shape is what its callers send: Triton leaves its reshape out of the comparison.
    return _End(
        model=step.model_name,
        tensor=name,
        path=path,
        step=index,
        type=type_name(tensor.data_type),
        dims=tuple(tensor.dims),
        batched=model.config.max_batch_size > 0,
    )


def _check_types(ensemble: ModelFolder, name: str, wire: _Wire) -> Iterator[Finding]:
    ends = [end for end in (*wire.writers, *wire.readers) if end.type]
    for end in ends[1:]:
        first = ends[0]
        about = [(first.model, first.tensor), (end.model, end.tensor)]
        # A step's map can be corrected; the ensemble's own tensors are what its clients know.
        at = end if end.step is not None else first if first.step is not None else end
        if end.type != first.type:
            yield ensemble.error(
                at.path,
                found=(
                    f"tensor {name!r} is {first.type} as {first.label}, {end.type} as {end.label}"
                ),
                expected="one type",
                remedy="correct the config that is wrong",
                tensors=about,
            )
        # A model that batches fits one that does not when its batch axis counts as one of theirs.
        elif not (_agree(first.dims, end.dims) or _agree(first.shape, end.shape)):
            yield ensemble.error(
                at.path,
                found=(
                    f"tensor {name!r} has dims {list(first.dims)} as {first.label}, "
                    f"{list(end.dims)} as {end.label}"
                ),
                expected="one shape, where -1 fits any size",
                remedy="correct the config that is wrong",
                tensors=about,
            )


def _agree(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _check_writers(ensemble: ModelFolder, name: str, wire: _Wire) -> Iterator[Finding]:
    for second in wire.writers[1:]:
        yield ensemble.error(
            second.path,
            found=f"{name!r} is written by {wire.writers[0].label} already",
            expected="one writer of a tensor",
            remedy="give one of them another name",
        )


def _check_ends(
    ensemble: ModelFolder,
    wires: Mapping[str, _Wire],
    explained: Collection[tuple[str, str]],
    unmapped: Sequence[_End],
) -> Iterator[Finding]:
    """Report tensors without a writer or a reader; a misspelt pair is one finding.

    A tensor that nothing reads is not reported where an `unmapped` input is the likely reader:
    mapping that input cures both.
    """
    unread = [name for name, wire in wires.items() if not wire.readers]
    unwritten = [name for name, wire in wires.items() if not wire.writers]
    for name in unwritten:
        close = difflib.get_close_matches(name, unread, 1, 0.8)
        # However unlike: the only two ends that are loose belong together.
        if not close and len(unread) == len(unwritten) == 1:
            close = [*unread]
        unread = [other for other in unread if other not in close]
        reader = wires[name].readers[0]
        yield ensemble.error(
            reader.path,
            found=f"nothing writes the {'output' if reader.step is None else 'tensor'} {name!r}",
            expected="an ensemble's input or an output of a step",
            remedy=(f"{close[0]!r}, which nothing reads, may be meant" if close else "map it"),
            tensors=[(reader.model, reader.tensor)],
        )
    for name in unread:
        writer = wires[name].writers[0]
        # By type and shape: the names of a wire's two ends may be as unlike as they please.
        wanted = any(e.type == writer.type and _agree(e.dims, writer.dims) for e in unmapped)
        if not wanted and (writer.model, writer.tensor) not in explained:
            yield ensemble.error(
                writer.path,
                found=f"nothing reads the {'input' if writer.step is None else 'tensor'} {name!r}",
                expected="a step's input or an ensemble's output",
                remedy="map it or remove it",
                tensors=[(writer.model, writer.tensor)],
            )


def _check_order(
    ensemble: ModelFolder, wires: Mapping[str, _Wire], models: Mapping[str, ModelFolder]
) -> Iterator[Finding]:
    """Follow the data from the inputs: no cycle, and one decoupled origin for each step."""
    steps = ensemble.config.ensemble_scheduling.step
    # Which decoupled step a tensor's responses come from; 0 is none.
    origins = {n: 0 for n, w in wires.items() if any(e.step is None for e in w.writers)}
    waiting = dict(enumerate(steps))
    while ready := [i for i, s in waiting.items() if {*s.input_map.values()} <= origins.keys()]:
        for index in ready:
            step = waiting.pop(index)
            sources = {target: origins[target] for target in step.input_map.values()}
            if len({*sources.values()}) > 1:
                yield _mixed(
                    ensemble,
                    _path(index, "input_map"),
                    reader=step.model_name,
                    sources=sources,
                    steps=steps,
                )
            origin = max(sources.values(), default=0)
            model = models.get(step.model_name)
            if model and model.config and model.config.model_transaction_policy.decoupled:
                origin = index + 1
            origins |= dict.fromkeys(step.output_map.values(), origin)
    # Whatever waits now waits for itself; one finding names them all.
    for index in [*waiting][:1]:
        cycle = ", ".join(sorted(step.model_name for step in waiting.values()))
        yield ensemble.error(
            _path(index, "input_map"),
            found=f"the steps {cycle} wait for each other",
            expected="data that flows one way",
            remedy="break the cycle",
        )
    results = {o.name: origins[o.name] for o in ensemble.config.output if o.name in origins}
    if not waiting and len({*results.values()}) > 1:
        yield _mixed(ensemble, "output", reader="the ensemble", sources=results, steps=steps)


def _mixed(
    ensemble: ModelFolder, path: str, reader: str, sources: Mapping[str, int], steps: Sequence[Any]
) -> Finding:
    last = max(sources.values())
    others = sorted(name for name, origin in sources.items() if origin != last)
    return ensemble.error(
        path,
        found=(
            f"{reader} takes {', '.join(others)} from before the decoupled "
            f"{steps[last - 1].model_name}, and its answers too"
        ),
        expected="tensors of one origin after a decoupled model",
        remedy="take them from it, or not at all",
    )
