"""JSON bodies, events, protocol buffers and the state of an answer."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_trt.clients.faults import BrokenProtocolError, Fault
from minitron_trt.clients.grpc_api import service_pb2
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.clients.model_interface import TEXT_MODEL, InferCall
from minitron_trt.clients.protocol import AnswerStream, EventReader, Piece
from minitron_trt.clients.protocol_grpc import decode, decode_response, encode, pack_bytes
from minitron_trt.clients.protocol_http import decode_event, http_body, http_path
from minitron_trt.errors import RefusedError

FULL = TEXT_MODEL.call(
    GenerateRequest(
        "héllo",
        max_tokens=16,
        temperature=0.5,
        top_k=-1,
        top_p=1,
        seed=2**64 - 1,
        stop_words=("\n", "ü"),
        bad_words=("no",),
        end_id=2,
        stream=False,
        model="tensorrt_llm_bls",
        request_id="r1",
    )
)


def call(text: str, **options: Any) -> InferCall:
    return TEXT_MODEL.call(GenerateRequest(text, **options))


def infer_response(final: bool | None, **output: Any) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    if final is not None:
        message.infer_response.parameters["triton_final_response"].bool_param = final
    if output:
        message.infer_response.outputs.add(name="cum_log_probs", datatype="FP32", shape=(1,))
        tensor = message.infer_response.outputs.add(name="text_output", datatype="BYTES")
        tensor.contents.bytes_contents.extend(output.get("contents", []))
        message.infer_response.raw_output_contents.extend([b"\0\0\0\0", *output.get("raw", [])])
    return message


def test_a_request_is_a_json_body_keyed_by_tensor() -> None:
    assert http_path(FULL) == "/v2/models/tensorrt_llm_bls/generate"
    assert http_body(FULL) == {
        "id": "r1",
        "text_input": "héllo",
        "max_tokens": 16,
        "temperature": 0.5,
        "top_k": -1,
        "top_p": 1,
        "seed": 18446744073709551615,
        "stop_words": ("\n", "ü"),
        "bad_words": ("no",),
        "end_id": 2,
        "stream": False,
    }


def test_a_streamed_request_goes_to_the_stream_path_of_its_model() -> None:
    assert http_path(call("hi", model="a/b")) == "/v2/models/a%2Fb/generate_stream"


def test_a_request_is_a_protocol_buffer_with_raw_tensors_in_order() -> None:
    message = service_pb2.ModelInferRequest.FromString(encode(FULL).SerializeToString())

    tensors = [
        (tensor.name, tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    ]
    assert tensors == [
        ("text_input", "BYTES", [1, 1], b"\x06\0\0\0h\xc3\xa9llo"),
        ("max_tokens", "INT32", [1, 1], b"\x10\0\0\0"),
        ("bad_words", "BYTES", [1, 1], b"\x02\0\0\0no"),
        ("stop_words", "BYTES", [1, 2], b"\x01\0\0\0\n\x02\0\0\0\xc3\xbc"),
        ("end_id", "INT32", [1, 1], b"\x02\0\0\0"),
        ("top_k", "INT32", [1, 1], b"\xff\xff\xff\xff"),
        ("top_p", "FP32", [1, 1], b"\0\0\x80\x3f"),
        ("temperature", "FP32", [1, 1], b"\0\0\0\x3f"),
        ("seed", "UINT64", [1, 1], b"\xff" * 8),
        ("stream", "BOOL", [1, 1], b"\0"),
    ]
    assert (message.model_name, message.id) == ("tensorrt_llm_bls", "r1")
    assert [output.name for output in message.outputs] == ["text_output"]
    assert message.parameters["triton_enable_empty_final_response"].bool_param is True


def test_a_short_request_sends_only_what_is_set() -> None:
    message = encode(call("hi"))

    assert [tensor.name for tensor in message.inputs] == ["text_input", "stream", "max_tokens"]
    assert message.model_name == "ensemble"


@pytest.mark.parametrize(
    ("data", "piece"),
    [
        ('{"text_output": "a"}', Piece(("a",))),
        ('{"model_name": "ensemble", "text_output": ""}', Piece(("",))),
        ('{"sequence_id": 0, "sequence_start": false, "text_output": "a"}', Piece(("a",))),
        ('{"text_output": ["a", "b"]}', Piece(("a", "b"))),
        ('{"text_output": "a", "sequence_index": 2}', Piece(("a",), sequence=2)),
        ('{"text_output": "a", "finish_reason": ""}', Piece(("a",))),
        ('{"text_output": "a", "finish_reason": "stop"}', Piece(("a",), finish_reason="stop")),
        (
            '{"text_output": "a", "cum_log_probs": -1.5, "output_log_probs": [-1.0, -0.5]}',
            Piece(("a",), outputs={"cum_log_probs": (-1.5,), "output_log_probs": [-1.0, -0.5]}),
        ),
        (
            '{"output_ids": [], "sequence_length": 0, "finish_reason": "stop"}',
            Piece(("",), finish_reason="stop", token_ids=[]),
        ),
    ],
)
def test_an_event_carries_text(data: str, piece: Piece) -> None:
    assert decode_event(data)._replace(size=0) == piece


@pytest.mark.parametrize(
    ("message", "piece"),
    [
        (infer_response(False, raw=[pack_bytes(b"a\xc3")]), Piece((b"a\xc3",), final=False)),
        (infer_response(True, raw=[pack_bytes(b"a")]), Piece((b"a",), final=True)),
        (infer_response(None, raw=[pack_bytes(b"a") + pack_bytes(b"b")]), Piece((b"a", b"b"))),
        (infer_response(True), Piece(final=True)),
    ],
    ids=["raw", "text in the final response", "two strings", "empty final"],
)
def test_a_response_carries_text(message: Any, piece: Piece) -> None:
    found = decode(message)

    assert found._replace(outputs={}, size=0) == piece
    assert found.outputs == ({"cum_log_probs": [0.0]} if piece.texts else {})


def test_the_last_response_of_token_ids_may_have_none_but_the_reason() -> None:
    message = service_pb2.ModelStreamInferResponse()
    for name, datatype, data in (
        ("output_ids", "INT32", b""),
        ("sequence_length", "INT32", bytes(4)),
        ("finish_reason", "BYTES", pack_bytes(b"stop")),
    ):
        message.infer_response.outputs.add(name=name, datatype=datatype)
        message.infer_response.raw_output_contents.append(data)

    piece = decode(message)

    assert (piece.texts, piece.token_ids, piece.finish_reason) == (("",), [], "stop")


def test_a_response_carries_what_else_was_asked_for() -> None:
    message = service_pb2.ModelStreamInferResponse()
    for name, datatype, data in (
        ("text_output", "BYTES", pack_bytes(b"a")),
        ("output_log_probs", "FP32", struct.pack("<2f", -1.0, -0.5)),
        ("first_token_time_ns", "INT64", struct.pack("<q", -(2**62))),
        ("sequence_index", "INT32", struct.pack("<i", 3)),
        ("finish_reason", "BYTES", pack_bytes(b"length")),
    ):
        message.infer_response.outputs.add(name=name, datatype=datatype, shape=(1,))
        message.infer_response.raw_output_contents.append(data)

    assert decode(message)._replace(size=0) == Piece(
        (b"a",),
        sequence=3,
        finish_reason="length",
        outputs={"output_log_probs": [-1.0, -0.5], "first_token_time_ns": [-(2**62)]},
    )


def test_an_error_is_told_in_one_line() -> None:
    response = service_pb2.ModelStreamInferResponse(error_message="top_k is\n  -3.")

    with pytest.raises(RefusedError, match=r"^the server refused the request: top_k is -3$"):
        decode(response)
    with pytest.raises(RefusedError, match=r"^the server refused the request: top_k is -3$"):
        decode_event('{"error": "top_k is\\n -3."}')


@pytest.mark.parametrize("data", ["", "null", "[]", "<html>", "{}", '{"text_output": []}'])
def test_what_is_not_tritons_json_is_a_broken_protocol(data: str) -> None:
    with pytest.raises(BrokenProtocolError) as caught:
        decode_event(data)

    assert caught.value.fault is Fault.GARBLED
    assert str(caught.value) == f"an answer without text_output: {data!r}"


@pytest.mark.parametrize(
    "message",
    [
        infer_response(False),
        infer_response(False, raw=[]),
        infer_response(False, raw=[b"abc"]),
        infer_response(False, raw=[b"\x09\0\0\0abc"]),
    ],
    ids=["no text", "no buffer", "short buffer", "wrong length"],
)
def test_a_response_without_text_is_a_broken_protocol(message: Any) -> None:
    with pytest.raises(BrokenProtocolError, match="text_output"):
        decode(message)


@pytest.mark.parametrize(
    ("datatype", "data"), [("FP32", b"\0\0\0"), ("INT64", b"\0" * 4), ("FP8", b"\0")]
)
def test_a_tensor_that_is_no_tensor_is_a_broken_protocol(datatype: str, data: bytes) -> None:
    message = infer_response(False, raw=[pack_bytes(b"a")])
    message.infer_response.outputs[0].datatype = datatype
    message.infer_response.raw_output_contents[0] = data

    with pytest.raises(BrokenProtocolError, match=f"cum_log_probs in .* no {datatype} tensor"):
        decode(message)


def test_tensors_may_come_element_by_element() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
    response.outputs[0].contents.bytes_contents.append(b"a")
    response.outputs.add(name="num_output_tokens", datatype="INT32", shape=(1,))
    response.outputs[1].contents.int_contents.append(3)

    assert decode_response(response) == Piece((b"a",), outputs={"num_output_tokens": [3]})


@pytest.mark.slow
@given(st.text(), st.lists(st.integers(0, 60)), st.booleans())
def test_any_cut_of_the_bytes_gives_the_whole_text(
    text: str, cuts: list[int], marks_final: bool
) -> None:
    data = text.encode()
    edges = [0, *sorted(cuts), len(data)]
    answer = AnswerStream()
    not_final = False if marks_final else None

    chunks = []
    for a, b in itertools.pairwise(edges):
        chunks.extend(answer.feed(Piece((data[a:b],), final=not_final)))
    if marks_final:
        chunks.extend(answer.feed(Piece((b"",), final=True)))
    chunks.extend(answer.end())

    assert "".join(chunks) == text
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_half_a_character_at_the_end_does_not_vanish() -> None:
    chunks = AnswerStream().feed(Piece((b"a\xc3",), final=True))

    assert [(chunk.text, chunk.final) for chunk in chunks] == [
        ("a", False),
        ("\ufffd", False),
        ("", True),
    ]


def test_sequences_keep_their_half_characters_apart() -> None:
    answer = AnswerStream(sequences=2)

    chunks = [
        *answer.feed(Piece((b"\xc3", b"\xe2\x82"))),
        *answer.feed(Piece((b"\xac",), sequence=1)),
        *answer.feed(Piece((b"\xbc",), final=True)),
    ]

    assert [(chunk.sequence, chunk.text) for chunk in chunks if chunk.text] == [(1, "€"), (0, "ü")]


def test_an_answer_is_complete_after_its_final_piece() -> None:
    answer = AnswerStream()
    answer.feed(Piece(("all",), final=True))

    assert (answer.complete, list(answer.end())) == (True, [])
    with pytest.raises(BrokenProtocolError, match="more text came after the final response"):
        answer.feed(Piece(("more",)))


def test_an_answer_without_its_final_piece_was_cut_short() -> None:
    answer = AnswerStream()
    answer.feed(Piece(("some",), final=False))

    with pytest.raises(BrokenProtocolError) as caught:
        answer.end()

    assert caught.value.fault is Fault.LOST


def test_where_no_piece_is_marked_the_end_completes_the_answer() -> None:
    answer = AnswerStream()
    answer.feed(Piece(("all",)))

    assert [chunk.final for chunk in answer.end()] == [True]


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([Piece(final=True)], Fault.GARBLED),
        ([Piece(("a",), sequence=1)], Fault.GARBLED),
        ([Piece(("a",), sequence=-1)], Fault.GARBLED),
        ([Piece(("a", "b"))], Fault.GARBLED),
        ([Piece(("\ud800",))], Fault.GARBLED),
        ([Piece(("a",), size=6), Piece(("b",), size=5)], Fault.TOO_LARGE),
    ],
    ids=["no text", "no such sequence", "negative", "too many texts", "surrogate", "too large"],
)
def test_what_no_answer_can_be_is_a_broken_protocol(pieces: list[Piece], fault: Fault) -> None:
    answer = AnswerStream(limit_bytes=10)

    with pytest.raises(BrokenProtocolError) as caught:
        list(map(answer.feed, pieces))

    assert caught.value.fault is fault


EVENTS = b": hi\n\ndata: a\ndata:b\r\n\r\nid: 1\rdata:  c\r\rdata: rest\n"


@pytest.mark.slow
@given(st.lists(st.integers(0, len(EVENTS))))
def test_any_cut_of_a_stream_gives_the_same_events(cuts: list[int]) -> None:
    reader = EventReader(100)
    edges = [0, *sorted(cuts), len(EVENTS)]

    events = [event for a, b in itertools.pairwise(edges) for event in reader.feed(EVENTS[a:b])]

    assert events == [b"a\nb", b" c"]


@pytest.mark.parametrize("unit", [b"x", b"data: x\n", b"data: x"])
def test_an_event_has_a_largest_size(unit: bytes) -> None:
    reader = EventReader(100)

    with pytest.raises(BrokenProtocolError) as caught:
        list(map(reader.feed, [unit] * 1000))

    assert caught.value.fault is Fault.TOO_LARGE


def test_many_small_events_are_no_large_one() -> None:
    reader = EventReader(100)

    assert sum(len(reader.feed(b"data: x\n\n" * 7)) for _ in range(100)) == 700


@pytest.mark.parametrize(
    "events",
    [
        [b"data: a\n\n", b"data: b\n\n"],
        [b"data: \n\n", b"data: b\n\n"],
        [b"data: a", b"data: b\n\n", b"data: c\n\n"],
        [b"data: a\n", b"data: b\n\n", b"data: c\n\n"],
        [b"data: a\n\r", b"\ndata: b\n\n"],
        [b"data: a\rb\n\n", b"data: c\n\n"],
        [b": comment\n\n", b"data:a\n\n"],
    ],
    ids=str,
)
def test_events_that_come_each_by_itself_are_those_that_come_together(events: list[bytes]) -> None:
    reader = EventReader(100)
    apart = [data for event in events for data in reader.feed(event)]

    assert apart == EventReader(100).feed(b"".join(events))
