from . import drawing as drawing, page as page, view as view
from .camfigures import SCALES as SCALES
from .flowfigures import GROUPINGS as GROUPINGS
from .view import mean_known as mean_known
