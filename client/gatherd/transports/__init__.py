"""The ways to carry a request; gatherd/client.py chooses one by the URL."""
