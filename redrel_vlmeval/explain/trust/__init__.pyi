from . import comparing as comparing
from .comparing import Change as Change, change as change
from .testing import cards as cards, swap_text as swap_text, swapped as swapped
