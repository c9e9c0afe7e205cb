"""Says what was done, and what it saves."""
