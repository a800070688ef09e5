"""Written and tested, but not shown to help yet. Other rooms import `registry` alone."""
