"""Whether a model repository, or an engine, will load: found out without a server."""
