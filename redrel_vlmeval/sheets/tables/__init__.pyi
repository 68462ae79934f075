from .columns import KNOWN as KNOWN, Column as Column, cells as cells, yes_no as yes_no
from .details import runs as runs
from .field import field as field, summed_up as summed_up
from .leaders import (
    COSTS as COSTS,
    NOT_RUN as NOT_RUN,
    STATES as STATES,
    leaderboard as leaderboard,
    measured as measured,
    place as place,
    stages as stages,
)
from .table import Outcome as Outcome, Table as Table
from .whole import SUMMARY as SUMMARY, every as every, printed as printed
