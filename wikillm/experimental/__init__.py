"""Code that is tested, but not shown to help yet. Other packages import only `registry`."""
