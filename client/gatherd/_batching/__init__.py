"""Merging lookups that are made at the same time."""
