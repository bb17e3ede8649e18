"""What is written to a data dir, byte by byte."""
