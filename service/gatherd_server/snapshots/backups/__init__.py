"""Backups: snapshots copied to a place that survives the death of the data dir's disk.

`store.py` is the place that they are copied to, and `contents.py` its contents. `copying.py` copies
one there, `fetching.py` back. `child.py` is the process that copies for a server. `keeper.py` runs
that process whenever there is a new snapshot.

A backup is a snapshot's unchanged files under its name. snapshot.json, which lists them all with
their checksums, comes last; without it there is no backup. Left out on purpose: sharing what two
backups have in common, so that each is complete by itself; and encryption, which object stores do
themselves.
"""
