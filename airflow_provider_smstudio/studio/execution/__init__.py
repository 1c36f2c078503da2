"""The run of a notebook on a kernel, as a state machine without I/O."""
