"""The sources of new tables' rows: one module per format or place."""
