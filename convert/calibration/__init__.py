"""Run text through a model, to measure what its activations need."""
