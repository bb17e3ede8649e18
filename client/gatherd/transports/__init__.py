"""The ways a request travels; see client.py for which URL chooses which."""
