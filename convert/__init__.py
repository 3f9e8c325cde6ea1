"""Stage one: a Hugging Face checkpoint becomes a TensorRT-LLM checkpoint.

    convert("nvidia/Minitron-4B-Base", Path("checkpoint"), ConvertOptions(precision="fp8", tp=2))

`open_and_plan` says the same beforehand, as a ConversionPlan, and writes nothing.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.checkpoint import Checkpoint as Checkpoint
    from minitron_trt.convert.calibration.text import CalibrationText as CalibrationText
    from minitron_trt.convert.conversion import ConvertOptions as ConvertOptions
    from minitron_trt.convert.conversion import convert as convert
    from minitron_trt.convert.conversion import open_and_plan as open_and_plan
    from minitron_trt.convert.conversion_plan import ConversionPlan as ConversionPlan
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__,
        {
            "CalibrationText": "minitron_trt.convert.calibration.text",
            "Checkpoint": "minitron_trt.checkpoint",
            "ConversionPlan": "minitron_trt.convert.conversion_plan",
            "ConvertOptions": "minitron_trt.convert.conversion",
            "convert": "minitron_trt.convert.conversion",
            "open_and_plan": "minitron_trt.convert.conversion",
        },
    )
