"""What each operator does to the layout of its values: one entry an operator."""
