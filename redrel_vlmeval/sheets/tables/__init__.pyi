from . import columns as columns
from .columns import NOTES as NOTES, number_format as number_format, statistic as statistic, yes_no as yes_no
from .details import runs as runs
from .leaders import (
    COSTS as COSTS,
    NOT_RUN as NOT_RUN,
    STATES as STATES,
    leaderboard as leaderboard,
    place as place,
    two_words as two_words,
)
from .table import Table as Table
from .whole import SUMMARY as SUMMARY, every as every, printed as printed
