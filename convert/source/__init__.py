"""Model folders as they are found: located, opened, and read into checked facts and tensors.

    source = ModelSource.open(Path("Minitron-4B-Base"))

`minitron_trt.convert.torch_model.load_model(source, "cpu")` is the transformers model of it.
"""

from typing import TYPE_CHECKING

from minitron_trt.faces import lazy_face

if TYPE_CHECKING:
    from minitron_trt.convert.source.model_folder import ModelSource as ModelSource
else:
    __all__, __getattr__, __dir__ = lazy_face(
        __name__, {"ModelSource": "minitron_trt.convert.source.model_folder"}
    )
