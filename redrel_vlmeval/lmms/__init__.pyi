from . import shapes as shapes
from .door import DOORS as DOORS, manifests as manifests
from .reading import find_cells as find_cells
