"""How tokens leave: the wire messages, the server with its engine process, and the clients."""
