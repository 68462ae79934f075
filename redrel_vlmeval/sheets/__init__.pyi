from . import page as page, terminal as terminal
from .figures import (
    accuracy as accuracy,
    curves_of as curves_of,
    outcome as outcome,
    rules_at_one_budget as rules_at_one_budget,
)
from .offline import encoded as encoded, render as render
from .plain_csv import write_csv as write_csv
from .tables import field as field, leaderboard as leaderboard, measured as measured
from .terminal import to_text as to_text
from .writing import (
    SheetError as SheetError,
    check as check,
    prepare as prepare,
    write as write,
    write_tables as write_tables,
)
