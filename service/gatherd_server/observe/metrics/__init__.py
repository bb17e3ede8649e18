"""What the server counts, how its processes add it up, and how Prometheus reads it.

`names.py` lists every metric, `recorder.py` has the counters of one process and the memory that all
processes publish them in, `processes.py` reads what the kernel counts, `exposition.py` writes the
text that is scraped. Left out on purpose: prometheus_client, whose counters cost a lock and a
method call each, and whose multi-process mode keeps files that somebody has to clear.
"""
