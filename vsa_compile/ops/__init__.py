"""The operators: schemas, the specification, and the kernels of every device."""
