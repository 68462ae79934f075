from .progress import Bar as Bar, bar as bar
from .ranges import numbers as numbers, words as words
