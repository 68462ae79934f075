from . import (
    asked as asked,
    blind as blind,
    choosing as choosing,
    comparisons as comparisons,
    flips as flips,
    grid as grid,
    kept as kept,
    paired_tests as paired_tests,
    published as published,
    records as records,
)
from .asked import Asked as Asked, Line as Line
from .cells import NO_RULE as NO_RULE, no_collection as no_collection
from .choosing import Budget as Budget
from .dialogues import by_turn as by_turn
from .flips import DOWN as DOWN, SAME as SAME, UP as UP, letter as letter
from .grid import Grid as Grid, grids as grids
from .kept import Kept as Kept
from .paired_tests import FEWEST as FEWEST, p_text as p_text
from .reading import (
    Cell as Cell,
    Given as Given,
    Metric as Metric,
    Results as Results,
    ResultsError as ResultsError,
    category_curves as category_curves,
    read as read,
)
from .records import read_records as read_records
