"""Plans a run in numbers: batch, horizon, memory, time. Arithmetic without torch."""
