"""The compiled loops over rows, bags and keys."""
