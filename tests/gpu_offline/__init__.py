"""Test GPU code on a machine without a GPU: render it, compile it for real targets, interpret it.

    fake_cuda.py    a CUDA device that can be asked but not used, so that Inductor renders for it
    program.py      a rendered program: its source, its kernels
    interpreter.py  runs a rendered program on the CPU, kernels under Triton's interpreter
    offline.py      compiles a kernel to machine code and counts registers, spills, instructions
    training.py     renders whole graphs, forward and backward; launches.py reads what they launch
    native.py       AOTInductor up to the linker, and what g++ says to its C++
    cases.py        the attention calls that the tests are about

Rendering and interpreting need different processes: Triton reads TRITON_INTERPRET when a kernel is
decorated. Each module with a `main` is one such process. This is test code and may name private APIs.
"""
