"""What holds at run time: dense or sparse, the grid, the step of a schedule."""
