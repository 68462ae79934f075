from . import accuracy as accuracy, outcome as outcome
from .palette import DIVERGING as DIVERGING
