"""Waferline's arithmetic: tiles, programs and the executors that run them. Knows numpy arrays; never a model."""
