"""Writes the files of a data dir, byte by byte."""
