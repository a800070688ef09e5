"""From `data.path` to raw records: find and inspect files, decompress, cut records.

Nothing here cleans or parses more than is needed to find where a record starts and ends: that is
left to the worker processes, so that one reader can feed many of them. Memory is bounded by one
record, whatever the file.
"""
