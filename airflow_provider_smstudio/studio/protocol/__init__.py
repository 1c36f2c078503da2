"""The messages of kernels and servers: Jupyter's protocol, and the extensions of AWS's images. No I/O."""
