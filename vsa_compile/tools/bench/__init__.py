"""`python -m vsa_compile bench`: our attention against dense attention and FlexAttention, on one machine.

    plan        what to measure, read from the command line
    lists       lists of tiles for every query tile, and the number of their query-key pairs
    clock       interleaved samples: CUDA events on GPUs, perf_counter on CPU
    work        inputs, and the parts of attention that are timed
    dense, flex, ours   the contenders; block: a transformer block around them
    results     rows, table, JSON; roofline: the plot; setting: where and how it was measured
    log         collects what our kernels log
    session     runs it all

Importing this loads neither triton nor Inductor nor matplotlib.
"""
