from .assemble import ReportError as ReportError, html as html, write as write
