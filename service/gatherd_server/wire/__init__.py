"""Translates messages for the engine, and its results to messages; HTTP and gRPC share it."""
