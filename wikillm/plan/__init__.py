"""What a run will do, in numbers: batch, horizon, memory, time. Arithmetic without torch."""
