"""`make bench`: what the engine does per second, and what HTTP and Ray add to it."""
