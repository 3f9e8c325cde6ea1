"""A repository as a worker of NVIDIA Dynamo: Triton's streams behind Dynamo's frontend and router.

Dynamo's frontend tokenizes, chooses a worker and turns tokens into text. The worker asks Triton's
model `tensorrt_llm`, which takes and gives token ids, so that an answer can go on elsewhere.
"""
