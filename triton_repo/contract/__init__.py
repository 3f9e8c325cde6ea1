"""The tensors of the Triton models, and how the ensemble passes them on.

An output that tensorrt_llm gains for clients is one line in `tensors.statistics`: the ensemble and
tensorrt_llm_bls offer and pass on what stands there. An input that clients gain for tensorrt_llm
is one line each in `tensors.text_model`, in `runtime_tensors` and, since it is passed on, in the
models' own `minitron_models.tensor_names.PASSED_ON`. The check of repositories reads these tables.
"""
