"""Where new tables get their rows from: one module a source."""
