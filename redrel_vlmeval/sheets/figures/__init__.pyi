from . import accuracy as accuracy, looks as looks, outcome as outcome
from .curves import Curves as Curves, curves_of as curves_of
from .palette import DIVERGING as DIVERGING
from .rules import rules_at_one_budget as rules_at_one_budget
