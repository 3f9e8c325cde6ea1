"""Stage two: a checkpoint becomes an engine for one GPU architecture.

    checkpoint, request = Checkpoint.open(Path("checkpoint")), BuildRequest(max_batch_size=8)
    recipe = choose_recipe(model_of(checkpoint), find_target("ada"), request)
    built = build_engine(BuildJob(recipe, request, checkpoint, Path("engine")))

`make_plan` says beforehand what fits on which GPU, `planned_traffic` how many replicas serve a rate
of requests there, `check_engine` whether an engine will load.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.build.compatibility import LoadReport as LoadReport
    from minitron_trt.build.compatibility import check_engine as check_engine
    from minitron_trt.build.engine import Engine as Engine
    from minitron_trt.build.engine_build import Built as Built
    from minitron_trt.build.engine_build import build_engine as build_engine
    from minitron_trt.build.engine_model import EngineModel as EngineModel
    from minitron_trt.build.engine_model import find_model as find_model
    from minitron_trt.build.engine_model import model_of as model_of
    from minitron_trt.build.job import BuildJob as BuildJob
    from minitron_trt.build.plan.sizing import Plan as Plan
    from minitron_trt.build.plan.sizing import PlanRequest as PlanRequest
    from minitron_trt.build.plan.sizing import make_plan as make_plan
    from minitron_trt.build.plan.traffic.planned_traffic import PlannedTraffic as PlannedTraffic
    from minitron_trt.build.plan.traffic.planned_traffic import planned_traffic as planned_traffic
    from minitron_trt.build.plan.traffic.replicas import Demand as Demand
    from minitron_trt.build.recipe.engine_recipe import EngineRecipe as EngineRecipe
    from minitron_trt.build.recipe.engine_recipe import choose_recipe as choose_recipe
    from minitron_trt.build.recipe.request import BuildRequest as BuildRequest
    from minitron_trt.checkpoint import Checkpoint as Checkpoint
    from minitron_trt.gpus import find_target as find_target
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "BuildJob": "minitron_trt.build.job",
            "BuildRequest": "minitron_trt.build.recipe.request",
            "Built": "minitron_trt.build.engine_build",
            "Checkpoint": "minitron_trt.checkpoint",
            "Demand": "minitron_trt.build.plan.traffic.replicas",
            "Engine": "minitron_trt.build.engine",
            "EngineModel": "minitron_trt.build.engine_model",
            "EngineRecipe": "minitron_trt.build.recipe.engine_recipe",
            "LoadReport": "minitron_trt.build.compatibility",
            "Plan": "minitron_trt.build.plan.sizing",
            "PlanRequest": "minitron_trt.build.plan.sizing",
            "PlannedTraffic": "minitron_trt.build.plan.traffic.planned_traffic",
            "build_engine": "minitron_trt.build.engine_build",
            "check_engine": "minitron_trt.build.compatibility",
            "choose_recipe": "minitron_trt.build.recipe.engine_recipe",
            "find_model": "minitron_trt.build.engine_model",
            "find_target": "minitron_trt.gpus",
            "make_plan": "minitron_trt.build.plan.sizing",
            "model_of": "minitron_trt.build.engine_model",
            "planned_traffic": "minitron_trt.build.plan.traffic.planned_traffic",
        },
    )
