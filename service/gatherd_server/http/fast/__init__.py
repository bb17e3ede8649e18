"""Plain lookups, answered inside uvicorn's protocol class."""
