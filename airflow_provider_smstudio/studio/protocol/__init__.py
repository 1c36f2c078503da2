"""What kernels and servers say, as Jupyter specifies it or AWS's images extend it; pure."""
