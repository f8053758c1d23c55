"""Room 5, what a process knows of the others. It knows no connection and no channel."""
