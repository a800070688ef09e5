"""From `data.path` to raw records: find and inspect files, decompress, cut records.

The reader parses only as much as is needed to find where a record starts and ends. Cleaning and
full parsing run in the worker processes, so that one reader can feed many of them. Memory is
bounded by one record, for files of any size.
"""
