"""What the commands share at the terminal: numbers that are typed, the bar, their help, and their last lines."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
