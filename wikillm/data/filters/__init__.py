"""What happens to a clean text before it is tokenized.

It is converted, checked by quality rules, compared with evaluation files, and dropped if it is a
duplicate. `settings` turns `data.*` into a picklable description (`Filters`) that is part of the
fingerprint; `apply` carries it out; `drop_list` reads what `data/dedup/` found.
"""
