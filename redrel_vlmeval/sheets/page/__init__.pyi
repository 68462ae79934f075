from .assemble import ReportError as ReportError, html as html, write as write
from .explained import plain as plain
