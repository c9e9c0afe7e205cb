"""What only a GPU can show: parity in 10,000 cases, the same bits every time, CUDA graphs, no stray access.

`make gpu` runs it. A share of the same cases runs without a GPU too, so that the generator is tested itself.
"""
