"""The server's counters, their sums over its processes, and their text for Prometheus.

`names.py` lists every metric, `recorder.py` has the counters of one process and the memory in which
all processes publish them, `processes.py` reads the kernel's counters, `exposition.py` writes the
text that is scraped. Left out on purpose: prometheus_client, whose counters cost a lock and a
method call each, and whose multi-process mode keeps files that somebody has to clear.
"""
