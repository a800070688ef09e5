"""One description of a run: schema, layers with the origin of every value, presets, and the
DeepSpeed JSON."""
