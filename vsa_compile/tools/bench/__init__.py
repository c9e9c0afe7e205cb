"""`python -m vsa_compile bench`: our attention against dense attention and FlexAttention, on one machine.

    plan        what to measure, read from the command line
    lists       the tiles that every query tile attends to, and the query-key pairs that this makes
    clock       interleaved samples: CUDA events on GPUs, perf_counter on CPU
    work        inputs, and the parts of attention that are timed
    dense, flex, ours   the contenders; block: a transformer block around them
    results     rows, table, JSON; roofline: the plot; setting: where and how it was measured
    log         what our kernels say of themselves
    session     all of it in order

Importing this loads neither triton nor Inductor nor matplotlib.
"""
