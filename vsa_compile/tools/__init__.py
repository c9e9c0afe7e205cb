"""What `python -m vsa_compile` runs."""
