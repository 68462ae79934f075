"""``redrel table``: the field's table, methods x budgets x benchmarks, planned, run where it is missing, written."""

import lazy_loader

# what the folder exports stands in __init__.pyi; each is imported when first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
