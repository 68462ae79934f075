"""``redrel bases --try``: a host's own class on a tiny checkpoint of random weights, truncated and checked."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
