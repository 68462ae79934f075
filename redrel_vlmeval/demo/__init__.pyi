from . import show as show
