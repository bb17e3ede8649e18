"""Backups: snapshots copied to where the data dir's disk doesn't take them along when it dies.

`store.py` is a place that they are copied to, `contents.py` what is in it, `copying.py` copies one
there and `fetching.py` back, `child.py` is the process that a server has do it and `keeper.py` has
that process done its work whenever there is a new snapshot.

A backup is a snapshot's files under its name, as they are; snapshot.json, which names them all
with their checksums, comes last, and what hasn't it is no backup. Left out on purpose: what two
backups have in common is stored twice, so that each stands alone; and encryption, which object
stores do themselves.
"""
