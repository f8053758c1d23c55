"""Room 1: bytes and rules of RFC 6455 and RFC 7692. No gevent, no socket, no clock."""
