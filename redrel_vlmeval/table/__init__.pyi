from . import plan as plan, run as run
