"""What each call gets, and how that changes over a run: plain values."""
