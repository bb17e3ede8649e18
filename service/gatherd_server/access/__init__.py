"""Permission and room for requests: the same for every wire."""
