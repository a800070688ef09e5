"""Record which tokens each optimizer step consumed, and audit that record from files."""
