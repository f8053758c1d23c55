"""The subprotocol ``wsmiddleware.v1``: frames as values, the state of one client. Sans-I/O."""
