"""What each call gets, and how that changes during a run: plain values."""
