"""Non-local means, the ancestor: a pixel becomes a mean of the pixels around it, weighted by how alike their
patches are (Buades, Coll and Morel, CVPR 2005; the paper's section 2).

`reference.py` has it as written, `shifts.py` in torch with its gradients, `denoise.py` is what people call.
"""
