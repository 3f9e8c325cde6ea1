"""`minitron-trt plan`: what a model takes on GPUs, before one is rented."""
