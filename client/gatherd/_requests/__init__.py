"""Requests as callers make them, checked before anything is sent."""
