"""`python -m minitron_trt` is `minitron-trt`."""

from minitron_trt.cli import main

main(prog_name="minitron-trt")
