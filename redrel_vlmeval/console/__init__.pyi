from .commands import App as App
from .ending import ending as ending
from .progress import Bar as Bar, bar as bar
from .ranges import numbers as numbers, words as words
from .streams import (
    brief as brief,
    open_streams as open_streams,
    speak_utf8 as speak_utf8,
    written_out as written_out,
)
