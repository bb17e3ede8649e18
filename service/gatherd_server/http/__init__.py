"""The HTTP port: REST, Connect, health and the API's description."""
