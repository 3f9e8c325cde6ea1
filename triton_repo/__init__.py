"""Stage three: a checkpoint or engine becomes a Triton model repository, and Triton serves it.

from minitron_trt.triton_repo import ServerOptions, ServingRecipe, emit_repository, serving

emit_repository(Path("checkpoint"), Path("repository"), ServingRecipe())
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.triton_repo.check.repository_check import check_repository as check_repository
    from minitron_trt.triton_repo.repository import ModelRepository as ModelRepository
    from minitron_trt.triton_repo.repository import emit_repository as emit_repository
    from minitron_trt.triton_repo.serving.server_options import Endpoints as Endpoints
    from minitron_trt.triton_repo.serving.server_options import ServerOptions as ServerOptions
    from minitron_trt.triton_repo.serving_recipe import ServingRecipe as ServingRecipe
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "Endpoints": "minitron_trt.triton_repo.serving.server_options",
            "ModelRepository": "minitron_trt.triton_repo.repository",
            "ServerOptions": "minitron_trt.triton_repo.serving.server_options",
            "ServingRecipe": "minitron_trt.triton_repo.serving_recipe",
            "check_repository": "minitron_trt.triton_repo.check.repository_check",
            "emit_repository": "minitron_trt.triton_repo.repository",
        },
    )
