"""Carry out a conversion plan: bytes move from the source into the files of the ranks."""
