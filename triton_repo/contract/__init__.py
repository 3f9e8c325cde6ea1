"""The tensors of the Triton models, and how the ensemble passes them on."""
