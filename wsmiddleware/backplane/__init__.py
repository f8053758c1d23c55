"""Room 4, other processes: bytes go out and come in. It knows no connection and no channel.

Nothing here imports gevent, so that a process that serves nobody can publish.
"""
