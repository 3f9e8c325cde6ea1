"""The reading of config.pbtxt behind `check`: every field's line, whatever the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.triton_repo.upstream import templates
from tritonclient.grpc import model_config_pb2

from minitron_trt.triton_repo.check.field_positions import outline

GOLDEN = Path(__file__).parents[2] / "golden" / "triton_repo"
TEMPLATES = templates()


def paths(message: Any, prefix: str = "") -> Iterator[str]:
    """Return the path of every field that a message has."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            nested = field.message_type.fields_by_name["value"].message_type is not None
            for key, entry in value.items():
                yield f'{prefix}{field.name}["{key}"]'
                yield from paths(entry, f'{prefix}{field.name}["{key}"].') if nested else ()
        elif field.default_value == []:
            for index, item in enumerate(value):
                yield f"{prefix}{field.name}[{index}]"
                if field.message_type is not None:
                    yield from paths(item, f"{prefix}{field.name}[{index}].")
        else:
            yield prefix + field.name
            if field.message_type is not None:
                yield from paths(value, f"{prefix}{field.name}.")


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.pbtxt")), ids=lambda path: path.stem)
def test_every_field_of_our_configs_has_its_line(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()

    read = outline(text)

    assert {*paths(parsed(text))} <= read.places.keys()
    assert not (read.unknown)
    assert not (read.repeated)
    assert not (read.placeholders)
    for name in ("max_batch_size", "name", "input[1].data_type"):
        line = read.line(name)
        assert line is not None
        assert lines[line - 1].strip().startswith(name.rpartition(".")[2])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_reads_as_it_would_when_filled(name: str) -> None:
    read = outline(TEMPLATES[name])

    assert {*paths(parsed(read.filled))} <= read.places.keys()
    assert read.unknown == ()


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ('parameters: {\n key: "a"\n value: {\n string_value: "b" } }', 'parameters["a"]', 3),
        ("input [\n {},\n { name: 'x', dims: [1,\n 2] }]", "input[1].dims[1]", 4),
        ("input <\n name: 'a' 'b';\n>", "input[0].name", 2),
        ("# name: 'x'\nname: 'y'", "name", 2),
        ("name: 'y'", "input[3].dims", None),
        ("input {\n name: 'a'\n}", "input[0].dims", 1),
        # The key is written with an escape, which a path does not have.
        (
            'ensemble_scheduling {\nstep {\n input_map { key: "a\\"]b" } } }',
            'ensemble_scheduling.step[0].input_map["a"]b"]',
            2,
        ),
        ("name: 'y'", 'parameters["[."[["]', None),
    ],
    ids=["map", "lists", "angles", "comment", "absent", "around", "escaped", "odd"],
)
def test_lines_of_every_notation(text: str, path: str, line: int | None) -> None:
    assert outline(text).line(path) == line


def test_unknown_fields_and_repeated_keys_are_all_named() -> None:
    read = outline(
        'nam: "x" input { dim: 1 } ensemble_scheduling { step { '
        'input_map { key: "a" value: "b" } input_map { key: "a" value: "c" } } }'
    )

    assert read.unknown == ("nam", "input[0].dim")
    assert read.repeated == ('ensemble_scheduling.step[0].input_map["a"]',)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_no_text_stops_the_reading(data: st.DataObject) -> None:
    text = TEMPLATES["postprocessing"]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 30, len(text))))
    junk = data.draw(st.text("{}[]<>:;,\"'$#\\\n ax1é", max_size=8))

    read = outline(text[:start] + junk + text[end:])

    assert all(line >= 1 and column >= 1 for line, column in read.places.values())
