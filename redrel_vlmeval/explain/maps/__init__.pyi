from . import flow as flow, gradcam as gradcam, pixels as pixels
from .flow import Flow as Flow
from .formulas import OBJECTIVES as OBJECTIVES, elementwise as elementwise, objective as objective
from .gradcam import (
    METHODS as METHODS,
    WHERE as WHERE,
    Explained as Explained,
    Maps as Maps,
    Request as Request,
    explain as explain,
)
from .grid import Grid as Grid, locality as locality, shown as shown, through as through
from .modes import differentiable as differentiable
from .passes import log_likelihood as log_likelihood, run as run
from .pixels import grids as grids
from .taken import Edit as Edit, Wanted as Wanted
