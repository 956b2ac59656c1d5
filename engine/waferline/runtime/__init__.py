"""How a step is made: requests, sequences, KV blocks, the scheduler and the engine core."""
