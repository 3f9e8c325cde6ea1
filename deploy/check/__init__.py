"""`deploy check`: files against the schemas, against the engine, and against each other.

`files` reads them with their lines, `claims` takes from each format what it promises the server,
and every rule speaks in findings as those of a model repository do.
"""
