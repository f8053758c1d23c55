"""Room 3, user code: listeners, what they are given, and how their callbacks run."""
