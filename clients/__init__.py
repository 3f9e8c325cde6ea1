"""Talk to a Triton server: gRPC or HTTP, sync or async, text streamed as it is made.

    from minitron_trt.clients import Client

    with Client.connect("grpc://127.0.0.1:8001") as client:
        for piece in client.stream("our solar system is", max_tokens=32):
            print(piece, end="", flush=True)

`AsyncClient` is the same with async and await. `EchoTransport` and `AsyncEchoTransport` stand in
for a server in tests.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.clients.aio import AsyncClient as AsyncClient
    from minitron_trt.clients.aio import AsyncTextStream as AsyncTextStream
    from minitron_trt.clients.client import Client as Client
    from minitron_trt.clients.client import TextStream as TextStream
    from minitron_trt.clients.completions import Completion as Completion
    from minitron_trt.clients.deadlines import Deadlines as Deadlines
    from minitron_trt.clients.endpoint import Access as Access
    from minitron_trt.clients.endpoint import SizeLimits as SizeLimits
    from minitron_trt.clients.endpoint import Timeouts as Timeouts
    from minitron_trt.clients.messages import Chunk as Chunk
    from minitron_trt.clients.messages import GenerateRequest as GenerateRequest
    from minitron_trt.clients.transport import AsyncEchoTransport as AsyncEchoTransport
    from minitron_trt.clients.transport import AsyncTransport as AsyncTransport
    from minitron_trt.clients.transport import EchoTransport as EchoTransport
    from minitron_trt.clients.transport import Transport as Transport
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Access": "minitron_trt.clients.endpoint",
            "AsyncClient": "minitron_trt.clients.aio",
            "AsyncEchoTransport": "minitron_trt.clients.transport",
            "AsyncTextStream": "minitron_trt.clients.aio",
            "AsyncTransport": "minitron_trt.clients.transport",
            "Chunk": "minitron_trt.clients.messages",
            "Client": "minitron_trt.clients.client",
            "Completion": "minitron_trt.clients.completions",
            "Deadlines": "minitron_trt.clients.deadlines",
            "EchoTransport": "minitron_trt.clients.transport",
            "GenerateRequest": "minitron_trt.clients.messages",
            "SizeLimits": "minitron_trt.clients.endpoint",
            "TextStream": "minitron_trt.clients.client",
            "Timeouts": "minitron_trt.clients.endpoint",
            "Transport": "minitron_trt.clients.transport",
        },
    )
