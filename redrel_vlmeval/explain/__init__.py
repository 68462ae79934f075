"""Where an answer comes from: attention shares, gradients and cuts for every decoder block, maps on the picture.

Arrays in, arrays out; what draws reads the files that :mod:`store` writes and needs no torch.
"""
