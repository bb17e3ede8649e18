"""A server's reports: logs, traces, metrics, and the request they belong to."""
