"""Which tokens each optimizer step consumed: the record, its digests, and the proof from files."""
