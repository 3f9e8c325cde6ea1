"""One page of everything that was found out about a model."""
