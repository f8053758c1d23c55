"""Room 2, one live connection: messages in, ``send`` and ``close`` out. On gevent and protocol/."""
