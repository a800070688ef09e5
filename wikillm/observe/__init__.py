"""What a run measures, and where it goes: names, meter, log line, files, SwanLab. Needs torch only for GPU memory."""
