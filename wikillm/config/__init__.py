"""A run's configuration: schema, layers with the origin of every value, presets, DeepSpeed JSON."""
