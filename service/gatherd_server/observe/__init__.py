"""What a server reports: logs, traces, metrics, and the request they belong to."""
