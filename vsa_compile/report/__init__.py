"""Reports what was done, and what it saves."""
