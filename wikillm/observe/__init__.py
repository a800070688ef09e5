"""What a run measures, and where it goes: names, the meter, the log line, files, SwanLab. torch is imported only to read GPU memory."""
