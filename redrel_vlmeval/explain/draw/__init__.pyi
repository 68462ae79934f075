from . import drawing as drawing, keptfigures as keptfigures, page as page, view as view
from .camfigures import SCALES as SCALES
from .flowfigures import GROUPINGS as GROUPINGS
from .keptfigures import Panel as Panel
from .view import mean_known as mean_known
