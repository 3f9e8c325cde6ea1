"""Talk to a Triton server: gRPC or HTTP, sync or async, text streamed as it is made.

    from minitron_trt.clients.client import Client
    from minitron_trt.clients.messages import GenerateRequest

    with Client.connect("grpc://127.0.0.1:8001") as client:
        for text in client.stream(GenerateRequest("our solar system is")):
            print(text, end="", flush=True)

`clients.aio.AsyncClient` is the same with async and await. `clients.transport.EchoTransport` stands
in for a server in tests.
"""
