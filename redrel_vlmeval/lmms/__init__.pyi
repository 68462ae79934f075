from . import shapes as shapes
from .door import manifests as manifests
from .reading import find_cells as find_cells
