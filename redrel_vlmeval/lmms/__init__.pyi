from . import shapes as shapes
from .door import DOORS as DOORS, manifests as manifests, not_of_lmms as not_of_lmms
from .reading import find_cells as find_cells
