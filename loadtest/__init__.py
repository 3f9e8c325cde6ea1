"""How fast a server answers: load put on it, and the figures by which servers are compared."""
