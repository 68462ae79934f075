from . import plan as plan, preview as preview, run as run
from .sweeper import Answer as Answer, Sweeper as Sweeper
