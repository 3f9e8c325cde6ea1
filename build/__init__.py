"""Stage two: a checkpoint becomes an engine for one GPU architecture."""
