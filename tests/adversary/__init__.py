"""An adversary of the analysis: edits that change what a graph means, and edits that do not.

captured.py   graphs of random models, and how to run them
sketch.py     how an edit writes into a graph
reorder.py    edits that bring tokens into another order, or mix whose tokens they are
masks.py      edits of masks, and new ones
impostors.py  operators that only look like known ones
keeping.py    edits that change nothing but the spelling
truth.py      what is true of a converted call, found by running the graph
"""
