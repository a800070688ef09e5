"""The filters between cleaning and tokenizing.

A text is converted, checked by quality rules, compared with evaluation files, and dropped if it is
a duplicate. `Filters` (settings.py) holds the settings as a picklable value that is part of the
fingerprint. apply.py applies the filters; drop_list.py reads the duplicates that `data/dedup/`
found.
"""
