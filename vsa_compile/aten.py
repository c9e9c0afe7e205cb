"""select and attend in chunked ATen."""
