from .ask import Asked as Asked, ask_model as ask_model
from .commands import app as app
from .maps import (
    Wanted as Wanted,
    differentiable as differentiable,
    elementwise as elementwise,
    gradcam as gradcam,
    objective as objective,
    run as run,
)
