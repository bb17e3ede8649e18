"""Owning a data dir, and changing its tables and versions."""
