"""Every configuration key is in the table of what a resume does with it."""

from __future__ import annotations

from wikillm.config.keys import all_keys
from wikillm.train.resume_keys import _TABLE


def test_every_key_of_the_schema_is_in_the_table_once() -> None:
    listed = [key for keys in _TABLE.values() for key in keys]
    differ = sorted({*listed} ^ {*all_keys()})
    assert sorted(listed) == sorted(all_keys()), f"add to wikillm/train/resume_keys.py: {differ}"
