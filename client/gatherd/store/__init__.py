"""Reading tables, as the SDK and the server both do it."""
