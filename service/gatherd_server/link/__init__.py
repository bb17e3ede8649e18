"""The engine's link to the writer, in the same process or another."""
