"""What this machine does: matrix products, copies, attention, all-reduce. Measured with torch, returned as plain numbers."""
