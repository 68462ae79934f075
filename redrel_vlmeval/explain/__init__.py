"""Where a model looks and what counts: attention flow and Grad-CAM, layer by layer, of any name."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
