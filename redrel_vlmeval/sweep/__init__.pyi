from . import plan as plan, preview as preview, run as run
from .memory import Sizes as Sizes
from .question import Answer as Answer
from .sweeper import Sweeper as Sweeper
