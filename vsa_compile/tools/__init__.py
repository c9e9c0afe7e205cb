"""The commands of `python -m vsa_compile`."""
