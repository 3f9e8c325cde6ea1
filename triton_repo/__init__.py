"""Stage three: a checkpoint or engine becomes a Triton model repository, and Triton serves it.

    emit_repository(Path("checkpoint"), Path("repository"), ServingRecipe())
    with running_server(Path("repository"), ServerOptions(free_endpoints())) as server:
        ...

`check_repository` says without a server whether one will load, also of repositories of others.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.triton_repo.check.report import RepositoryReport as RepositoryReport
    from minitron_trt.triton_repo.check.repository_check import check_repository as check_repository
    from minitron_trt.triton_repo.model_repository import ModelRepository as ModelRepository
    from minitron_trt.triton_repo.repository import emit_repository as emit_repository
    from minitron_trt.triton_repo.serving.runners import running_server as running_server
    from minitron_trt.triton_repo.serving.server import TritonServer as TritonServer
    from minitron_trt.triton_repo.serving.server_options import Endpoints as Endpoints
    from minitron_trt.triton_repo.serving.server_options import ServerOptions as ServerOptions
    from minitron_trt.triton_repo.serving.server_options import free_endpoints as free_endpoints
    from minitron_trt.triton_repo.serving_recipe import ServingRecipe as ServingRecipe
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Endpoints": "minitron_trt.triton_repo.serving.server_options",
            "ModelRepository": "minitron_trt.triton_repo.model_repository",
            "RepositoryReport": "minitron_trt.triton_repo.check.report",
            "ServerOptions": "minitron_trt.triton_repo.serving.server_options",
            "ServingRecipe": "minitron_trt.triton_repo.serving_recipe",
            "TritonServer": "minitron_trt.triton_repo.serving.server",
            "check_repository": "minitron_trt.triton_repo.check.repository_check",
            "emit_repository": "minitron_trt.triton_repo.repository",
            "free_endpoints": "minitron_trt.triton_repo.serving.server_options",
            "running_server": "minitron_trt.triton_repo.serving.runners",
        },
    )
