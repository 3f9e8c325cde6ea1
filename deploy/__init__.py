"""A repository on the engines that people run: Kubernetes, KServe, Dynamo, compose, Slurm.

`served_facts` reads what is known of a repository, `deployment` derives every number from that, and
one writer per target puts them into files: `pods`, `network`, `scaling` and `monitoring` for what
runs on Kubernetes, `compose` and `slurm` for the others. `check/` compares files with the facts.
"""
