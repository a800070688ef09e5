"""Generate text: samples during training, `wikillm generate`, `chat` and `serve`."""
