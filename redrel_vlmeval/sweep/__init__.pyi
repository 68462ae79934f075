from . import run as run
from .sweeper import Answer as Answer, Sweeper as Sweeper
