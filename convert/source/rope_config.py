"""The rotary embedding that a config.json describes, in one place or in several.

transformers 4.57 reads `rope_theta`, `partial_rotary_factor` and `rope_scaling`, and knows no
`rope_parameters`. transformers 5 gathers all of them in `rope_parameters`, whose place a
`rope_scaling` that is there takes; what stands within it comes before what stands beside it. A
config whose places contradict each other is refused, and so is one that the two read differently;
one with `rope_parameters` is 5's own, which 4.57 cannot read right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.convert.source.config_values import finite_number, nested_object
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import Family, Norm
from minitron_trt.spec import Llama3Scaling, Rope

_THETA, _FRACTION = "rope_theta", "partial_rotary_factor"
_DEFAULT_THETA: Final = 10000.0
_LEGACY, _OWN = "rope_scaling", "rope_parameters"
PERCENT_KEYS: Final = ("rope_percent", "rope_percentage")
ORIGINAL_LENGTH: Final = "original_max_position_embeddings"


def read_rope(record: Mapping[str, Any], family: Family) -> Rope:
    """Return the rotary embedding that transformers makes of a config.

    BadInputError names the keys that contradict each other or that the versions of transformers
    read differently; UnsupportedError names what the graph of the family does not have.
    """
    places = _Places.of(record)
    return Rope(
        theta=places.read(_THETA, _DEFAULT_THETA),
        fraction=_fraction(places, family),
        scaling=_scaling(places, family),
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """A config, and the objects within it that are about rotary embedding and not empty."""

    record: Mapping[str, Any]
    objects: Mapping[str, Mapping[str, Any]]  # in the order in which transformers 5 prefers them

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Places:
        """Find the objects; BadInputError where one has facts of each kind of layer apart."""
        nested = {name: nested_object(record, name) for name in (_LEGACY, _OWN)}
        for name, found in nested.items():
            apart = next((key for key, value in found.items() if isinstance(value, Mapping)), None)
            if apart is not None:
                raise BadInputError(
                    f"config.json: {name} holds an object for {apart!r}; expected one rotary "
                    "embedding for all layers"
                )
        return cls(record, {name: found for name, found in nested.items() if found})

    def stated(self, key: str) -> dict[str, float]:
        """Return the numbers under a key by the place where each stands."""
        places = {f"{name}.{key}": found.get(key) for name, found in self.objects.items()}
        places[key] = self.record.get(key)
        return {
            place: finite_number(value, key) for place, value in places.items() if value is not None
        }

    def read(self, key: str, default: float) -> float:
        """Return the number that transformers takes for a key."""
        stated = self.stated(key)
        inner = next((f"{name}.{key}" for name in self.objects), key)
        place = inner if inner in stated else key
        taken = stated.get(place, default)
        where = f"{place} is {taken}" if place in stated else f"transformers takes {taken}"
        for other, value in stated.items():
            if value != taken:
                raise BadInputError(
                    f"config.json: {other} is {value} but {where}; keep the one that the model was "
                    "trained with"
                )
        older = stated.get(key, default)
        if _OWN not in self.objects and older != taken:
            raise BadInputError(
                f"config.json: {place} is {taken}, which transformers 5 takes and 4.57 does not "
                f"(it takes {older}); state {key} beside {_LEGACY}"
            )
        return taken


def _fraction(places: _Places, family: Family) -> float:
    record, default = places.record, family.rotary_fraction
    if family.norm is Norm.RMS:
        # transformers 5 passes over these keys, and 4.57 cannot run what it makes of them.
        for key in (_FRACTION, *PERCENT_KEYS):
            for place, value in places.stated(key).items():
                if value != default:
                    raise UnsupportedError(
                        f"config.json: {place} is {value}, which the {family.architecture} graph "
                        "does not have"
                    )
        return default
    null = _FRACTION in record and record[_FRACTION] is None
    if null and not places.stated(_FRACTION):
        raise BadInputError(
            f"config.json: {_FRACTION} is null, which is 1.0 to transformers 5 and an error to "
            "4.57; state it"
        )
    fraction = places.read(_FRACTION, default)
    for key in PERCENT_KEYS:
        for place, value in places.stated(key).items():
            if value != fraction:
                raise BadInputError(
                    f"config.json: {place} is {value}, which transformers passes over for "
                    f"{_FRACTION}, here {fraction}; state that"
                )
    return fraction


def _scaling(places: _Places, family: Family) -> Llama3Scaling | None:
    scalings = {name: _scaling_of(name, found) for name, found in places.objects.items()}
    if len(set(scalings.values())) > 1:
        raise BadInputError(
            f"config.json: {_LEGACY} and {_OWN} scale differently; keep the one that the model was "
            "trained with"
        )
    scaling = next(iter(scalings.values()), None)
    if scaling is None:
        return None
    if family.norm is Norm.LAYER_1P and _OWN not in scalings:
        raise BadInputError(
            f"config.json: {_LEGACY} is of type {Llama3Scaling.KIND!r}, which transformers 5 "
            f"computes for {family.architecture} and 4.57 does not; remove {_LEGACY} or move it "
            f"to {_OWN}"
        )
    beside = places.record.get(ORIGINAL_LENGTH)
    if beside is not None and beside != scaling.original_max_positions:
        inner = f"{next(iter(scalings))}.{ORIGINAL_LENGTH}"
        raise BadInputError(
            f"config.json: {ORIGINAL_LENGTH} is {beside!r} but {inner} is "
            f"{scaling.original_max_positions}; keep the one that the model was trained with"
        )
    return scaling


def _scaling_of(name: str, record: Mapping[str, Any]) -> Llama3Scaling | None:
    kinds = [record[key] for key in ("rope_type", "type") if record.get(key) is not None]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise BadInputError(
            f"config.json: {name} has rope_type {kinds[0]!r} and type {kinds[1]!r}; transformers "
            "4.57 takes the second and 5 the first"
        )
    if not kinds and record.get("factor") is not None:
        raise BadInputError(
            f"config.json: {name} has a factor but no rope_type; transformers 5 then passes over "
            "it and 4.57 does not load it"
        )
    kind = kinds[0] if kinds else "default"
    if kind == "default":
        return None
    if kind != Llama3Scaling.KIND:
        raise UnsupportedError(
            f"{name} of type {kind!r} is not supported; known are 'default' and 'llama3'"
        )
    return Llama3Scaling.from_config(
        {key: _needed(record, key) for key in Llama3Scaling.CONFIG_KEYS}
    )


def _needed(record: Mapping[str, Any], key: str) -> float:
    if record.get(key) is None:
        raise BadInputError(f"config.json has no {key}")
    return finite_number(record[key], key)
