"""Convert, build and deploy NVIDIA Minitron models with TensorRT-LLM and Triton.

The client, what the stages hand on, and the errors are here. What a stage does is in its own
package: `minitron_trt.convert.convert`, `minitron_trt.build.build_engine`,
`minitron_trt.triton_repo.emit_repository`.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face
from minitron_trt.version import __version__ as __version__

if TYPE_CHECKING:
    from minitron_trt.build.engine import Engine as Engine
    from minitron_trt.checkpoint import Checkpoint as Checkpoint
    from minitron_trt.clients.aio import AsyncClient as AsyncClient
    from minitron_trt.clients.client import Client as Client
    from minitron_trt.clients.completions import Completion as Completion
    from minitron_trt.clients.messages import Chunk as Chunk
    from minitron_trt.clients.messages import GenerateRequest as GenerateRequest
    from minitron_trt.errors import BadInputError as BadInputError
    from minitron_trt.errors import MinitronError as MinitronError
    from minitron_trt.errors import MissingExtraError as MissingExtraError
    from minitron_trt.errors import OutputError as OutputError
    from minitron_trt.errors import ProcessError as ProcessError
    from minitron_trt.errors import ProtocolError as ProtocolError
    from minitron_trt.errors import RefusedError as RefusedError
    from minitron_trt.errors import RequestCancelledError as RequestCancelledError
    from minitron_trt.errors import ServerError as ServerError
    from minitron_trt.errors import ServerTimeoutError as ServerTimeoutError
    from minitron_trt.errors import UnreachableError as UnreachableError
    from minitron_trt.errors import UnsupportedError as UnsupportedError
    from minitron_trt.errors import UsageError as UsageError
    from minitron_trt.triton_repo.model_repository import ModelRepository as ModelRepository
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "AsyncClient": "minitron_trt.clients.aio",
            "BadInputError": "minitron_trt.errors",
            "Checkpoint": "minitron_trt.checkpoint",
            "Chunk": "minitron_trt.clients.messages",
            "Client": "minitron_trt.clients.client",
            "Completion": "minitron_trt.clients.completions",
            "Engine": "minitron_trt.build.engine",
            "GenerateRequest": "minitron_trt.clients.messages",
            "MinitronError": "minitron_trt.errors",
            "MissingExtraError": "minitron_trt.errors",
            "ModelRepository": "minitron_trt.triton_repo.model_repository",
            "OutputError": "minitron_trt.errors",
            "ProcessError": "minitron_trt.errors",
            "ProtocolError": "minitron_trt.errors",
            "RefusedError": "minitron_trt.errors",
            "RequestCancelledError": "minitron_trt.errors",
            "ServerError": "minitron_trt.errors",
            "ServerTimeoutError": "minitron_trt.errors",
            "UnreachableError": "minitron_trt.errors",
            "UnsupportedError": "minitron_trt.errors",
            "UsageError": "minitron_trt.errors",
        },
    )
