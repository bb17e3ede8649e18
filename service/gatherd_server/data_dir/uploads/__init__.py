"""Uploads: tables that come over the network in chunks, before they are tables."""
