from .ask import Asked as Asked, ask_host as ask_host, ask_model as ask_model
from .commands import app as app
from .listing import list_methods as list_methods, list_rules as list_rules
from .maps import (
    Request as Request,
    Wanted as Wanted,
    differentiable as differentiable,
    elementwise as elementwise,
    explain as explain,
    gradcam as gradcam,
    objective as objective,
    run as run,
)
from .maps.flow import Flow as Flow, flow as flow
