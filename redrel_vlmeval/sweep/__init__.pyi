from . import plan as plan, preview as preview, run as run
from .memory import Sizes as Sizes
from .sweeper import Answer as Answer, Sweeper as Sweeper
