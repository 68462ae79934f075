"""``redrel_smol``: a LLaVA on a real pretrained decoder, and the pictures and questions that are drawn for it."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
