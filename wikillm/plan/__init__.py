"""What a run will do, in numbers: batch, horizon, parameters, FLOPs. Pure arithmetic, torch-free."""
