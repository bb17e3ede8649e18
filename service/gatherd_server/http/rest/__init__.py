"""The REST API on FastAPI."""
