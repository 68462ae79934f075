"""How visual tokens are chosen: one function per rule, and the registry that all others ask which rules there are."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
