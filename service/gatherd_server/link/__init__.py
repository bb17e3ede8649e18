"""The engine's way to the writer, in the same process or another."""
