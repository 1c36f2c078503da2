"""A run from its preparation to its removal: in a worker, in the triggerer, and across tries."""
