"""Variant names, read and written: a name such as ``<base>_trunc_l5_k128`` <-> :class:`VariantSpec`.

Pure text; the whole form is :func:`grammar`. One variant has one name: what is the default (attention ranking, last
row, stock prompt, greedy) is not written, so that two runs with equal settings can be told by their names alone. Which
rules there are is asked of :mod:`redrel_vlmeval.rules`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
