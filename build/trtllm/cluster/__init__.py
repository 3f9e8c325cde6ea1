"""`--runner slurm` and `--runner kubernetes`: job files that build an engine on a cluster."""
